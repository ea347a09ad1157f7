"""torch's quantized kernels behind the seam."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from quantization.backends import torch_quantized
from quantization.backends.ops import PackedOps, always_ready
from quantization.errors import QuantizationError

RECORDS = {name: ops for name, ops in vars(torch_quantized).items() if isinstance(ops, PackedOps)}


@pytest.mark.parametrize("name", [name for name in RECORDS if name.startswith("LINEAR")])
def test_linear_records_give_back_what_they_packed(name: str) -> None:
    ops = RECORDS[name]
    weight, bias = torch.randn(3, 4).half().float(), torch.randn(3)
    if "FP16" in name:
        if torch.backends.quantized.engine not in ("x86", "fbgemm"):
            pytest.skip("this engine has no float16 kernels")
    else:
        weight = torch.quantize_per_tensor(weight, 0.125, 0, torch.qint8)
    ops.ready()
    unpacked = ops.unpack(ops.prepack(weight, bias))
    assert torch.equal(unpacked[0], weight)
    assert torch.equal(unpacked[1], bias)


@pytest.mark.parametrize("name", [name for name in RECORDS if name.startswith("CONV")])
def test_conv_records_give_back_what_they_packed(name: str) -> None:
    ops, rank = RECORDS[name], int(name.partition("D")[0][-1])
    if rank == 3 and torch.backends.quantized.engine == "qnnpack":
        pytest.skip("qnnpack cannot unpack a three-dimensional weight")
    weight = torch.quantize_per_tensor(torch.randn(4, 4, *[3] * rank), 0.125, 0, torch.qint8)
    ones, zeros = [1] * rank, [0] * rank
    extra = [zeros] if "TRANSPOSE" in name else []
    unpacked = ops.unpack(ops.prepack(weight, None, ones, zeros, *extra, ones, 1))
    assert torch.equal(unpacked[0].int_repr(), weight.int_repr())
    assert unpacked[1] is None


@pytest.mark.parametrize("supported", [["none", "qnnpack", "x86"], ["none"]], ids=["some", "none-at-all"])
def test_missing_engine_lists_what_exists(supported: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(engine="none", supported_engines=supported)
    monkeypatch.setattr(torch.backends, "quantized", stand_in)
    expected = r"\['qnnpack', 'x86'\]" if len(supported) > 1 else "this build of torch has none"
    with pytest.raises(QuantizationError, match=f"engine is 'none'.*{expected}"):
        torch_quantized.require_engine()


def test_missing_engine_stops_a_layer_before_it_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantization.nn import quantized

    stand_in = SimpleNamespace(engine="none", supported_engines=["none", "x86"])
    monkeypatch.setattr(torch.backends, "quantized", stand_in)
    for make in (lambda: quantized.Linear(2, 2), lambda: quantized.Conv1d(2, 2, 1)):
        with pytest.raises(QuantizationError, match=r"expected a real engine: choose one of \['x86'\]"):
            make()


def test_a_backend_without_needs_is_always_ready() -> None:
    assert always_ready() is None


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8])
def test_padding_codes_equals_padding_values(rank: int, mode: str, dtype: torch.dtype) -> None:
    x = torch.quantize_per_tensor(torch.randn(2, 3, *[5] * rank), 0.037, 11, dtype)
    amounts = [1, 2] * rank
    padded = torch_quantized.pad(x, amounts, mode)
    expected = torch.quantize_per_tensor(F.pad(x.dequantize(), amounts, mode), 0.037, 11, dtype)
    assert torch.equal(padded.int_repr(), expected.int_repr())
    assert (padded.q_scale(), padded.q_zero_point(), padded.dtype) == (x.q_scale(), 11, dtype)
    assert torch.equal(
        torch_quantized.pad(x.dequantize(), amounts, mode), F.pad(x.dequantize(), amounts, mode)
    )


def test_no_warning_of_torch_reaches_the_user() -> None:
    program = (
        "from quantization.nn import dynamic, quantized; import torch; "
        "torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.qint8); "
        "dynamic.Linear(2, 2)(torch.ones(1, 2)); quantized.Conv1d(2, 2, 1)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
