"""The flows run where torch.ao cannot be imported, and by torch.ao's names where programs use those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# torch itself imports torch.ao when it starts, and torch.jit looks up one class there: the alias serves it.
BLOCK = """
import sys, warnings
warnings.filterwarnings("ignore", message=".*torch.jit")
import torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.ao" or name.startswith(("torch.ao.", "torch.quantization", "torch.nn.quantized")):
            raise ImportError(f"{name} is blocked")

import quantization, quantization.compat
for name in [n for n in sys.modules if n == "torch.ao" or n.startswith(("torch.ao.", "torch.quantization"))]:
    del sys.modules[name]
del torch.ao
sys.meta_path.insert(0, Refuse())
try:
    import torch.ao
except ImportError:
    pass
else:
    sys.exit("torch.ao is still there")
alias = quantization.compat.alias_torch_ao()
theirs = [n for n, m in sys.modules.items() if "torch/ao/" in (getattr(m, "__file__", None) or "")]
assert theirs == [], theirs
"""

FLOWS = """
from quantization.torchscript import finalize, quantize_ondevice_dynamic_jit
x, model = torch.randn(2, 4), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
for script in (torch.jit.script(model), torch.jit.trace(model, x)):
    static = quantization.quantize_jit(
        script, {"": quantization.default_qconfig}, lambda m, data: m(data), [x]
    )
    dynamic = quantization.quantize_dynamic_jit(script, {"": quantization.default_dynamic_qconfig})
    shipped = quantize_ondevice_dynamic_jit(script, {"": quantization.default_dynamic_qconfig})
    assert torch.equal(finalize(shipped, inputs=(x,))(x), dynamic(x))
    assert (static(x) - model(x)).abs().max() < 0.1
"""

NAMES = """
from torch.ao.quantization.quantize_jit import (
    _check_forward_method, _check_is_script_module, _convert_jit, _convert_ondevice_dynamic_jit,
    _convert_ondevice_jit, _prepare_jit, _prepare_ondevice_dynamic_jit, _prepare_ondevice_jit, _quantize_jit,
    _quantize_ondevice_dynamic_jit, _quantize_ondevice_dynamic_jit_impl, convert_dynamic_jit, convert_jit,
    fuse_conv_bn_jit, prepare_dynamic_jit, prepare_jit, quantize_dynamic_jit, quantize_jit, script_qconfig,
    script_qconfig_dict,
)
from torch.ao.quantization import QuantType, default_dynamic_qconfig, quantize_jit as from_package
from torch.quantization.quantize_jit import quantize_jit as older
assert from_package is quantize_jit is older is quantization.quantize_jit
script = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4)))
_check_is_script_module(script), _check_forward_method(script)
everywhere = {"": default_dynamic_qconfig}
prepared = _prepare_jit(script, everywhere, False, QuantType.DYNAMIC)
by_parts = _convert_jit(prepared, quant_type=QuantType.DYNAMIC)
x = torch.randn(2, 4)
assert torch.equal(by_parts(x), _quantize_jit(script, everywhere, quant_type=QuantType.DYNAMIC)(x))
one = _convert_ondevice_dynamic_jit(_prepare_ondevice_dynamic_jit(script, everywhere, "forward"), "forward")
two = _quantize_ondevice_dynamic_jit(script, everywhere, method_name="forward")
three = _quantize_ondevice_dynamic_jit_impl(script, everywhere, "forward", inplace=False)
assert one._c._method_names() == two._c._method_names() == three._c._method_names()
"""


@pytest.mark.parametrize("program", [FLOWS, NAMES], ids=["flows", "names"])
def test_runs_with_torch_ao_blocked(program: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", BLOCK + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
