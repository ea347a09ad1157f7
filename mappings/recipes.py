"""What `quantize_dynamic` does for a dtype when it is told nothing else."""

from __future__ import annotations

from dataclasses import dataclass

_LINEAR_AND_RECURRENT = ("nn:Linear", "nn:LSTM", "nn:GRU", "nn:LSTMCell", "nn:RNNCell", "nn:GRUCell")


@dataclass(frozen=True)
class Recipe:
    """The types to quantize, and the name of the qconfig they get."""

    types: tuple[str, ...]
    qconfig: str


DYNAMIC: dict[str, Recipe] = {
    "qint8": Recipe(_LINEAR_AND_RECURRENT, "default_dynamic_qconfig"),
    "float16": Recipe(_LINEAR_AND_RECURRENT, "float16_dynamic_qconfig"),
    "quint8": Recipe(("nn:EmbeddingBag", "nn:Embedding"), "float_qparams_weight_only_qconfig"),
    "quint4x2": Recipe(("nn:EmbeddingBag",), "float_qparams_weight_only_qconfig_4bit"),
}
