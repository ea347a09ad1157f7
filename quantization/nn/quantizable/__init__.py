"""Observed composites: the names of `torch.ao.nn.quantizable`, and the private layers below its LSTM."""

from __future__ import annotations

from quantization.nn.quantizable.attention import MultiheadAttention as MultiheadAttention
from quantization.nn.quantizable.cell import LSTMCell as LSTMCell
from quantization.nn.quantizable.rnn import (
    LSTM as LSTM,
    _LSTMLayer as _LSTMLayer,
    _LSTMSingleLayer as _LSTMSingleLayer,
)
