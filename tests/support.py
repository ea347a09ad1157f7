"""What tests share: the engines of this machine, and silence for the warnings of torch itself."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

ENGINES = [e for e in torch.backends.quantized.supported_engines if e != "none"]


@contextlib.contextmanager
def _quiet(*messages: str) -> Iterator[None]:
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        yield


def quiet_jit() -> contextlib.AbstractContextManager[None]:
    """Silence TorchScript's own deprecation, which every `torch.jit.*` call raises."""
    return _quiet(r".*torch\.jit\..* is deprecated", r".*torch\.jit\.\w+ is not supported")


def quiet_ao() -> contextlib.AbstractContextManager[None]:
    """Silence what the oracle, torch.ao, says about itself and about its observers."""
    return _quiet(
        r".*ao\.quantization is deprecated",
        r".*torch\.quantize_per_tensor",
        r".*reduce_range",
        r".*must run observer",
        r".*is deprecated",
        r".*cat operator must share",
    )
