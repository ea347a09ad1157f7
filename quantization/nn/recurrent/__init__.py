"""Dynamically quantized recurrent layers and cells: float sequences in and out, int8 or float16 weights."""

from quantization.nn.recurrent.base import RNNBase as RNNBase
from quantization.nn.recurrent.cell_base import RNNCellBase as RNNCellBase
from quantization.nn.recurrent.cells import GRUCell as GRUCell, LSTMCell as LSTMCell, RNNCell as RNNCell
from quantization.nn.recurrent.layers import GRU as GRU, LSTM as LSTM, RNN as RNN
from quantization.nn.recurrent.packed import (
    PackedParameter as PackedParameter,
    pack_weight_bias as pack_weight_bias,
)
from quantization.nn.recurrent.sequences import (
    apply_permutation as _apply_permutation,  # noqa: F401
    apply_permutation as apply_permutation,
)
