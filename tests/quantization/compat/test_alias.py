"""torch.ao's names served by our code, and put back."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from unittest import mock

import pytest
import torch

import quantization
from quantization.compat import alias_torch_ao
from quantization.compat.names import LEGACY, SOURCES
from quantization.nn import fused, qat, quantized


def test_the_usual_imports_are_ours():
    with alias_torch_ao():
        import torch.ao.nn.intrinsic.qat as nniqat
        import torch.ao.nn.quantized as nnq
        from torch.ao.nn.intrinsic import ConvBn2d
        from torch.ao.quantization import prepare
        from torch.ao.quantization.observer import MinMaxObserver
        from torch.quantization import QuantStub

        assert prepare is quantization.prepare
        assert MinMaxObserver is quantization.MinMaxObserver
        assert QuantStub is quantization.QuantStub
        assert nnq.Conv2d is quantized.Conv2d
        assert nniqat.ConvBn2d is qat.ConvBn2d
        assert ConvBn2d is fused.ConvBn2d
        assert torch.ao.quantization.convert is quantization.convert
        assert torch.nn.quantized.Linear is quantized.Linear
        assert torch.quantization.quantize_dynamic is quantization.quantize_dynamic


def test_everything_is_put_back():
    names = [*SOURCES, *LEGACY]
    before = {name: sys.modules.get(name) for name in names}
    attribute = torch.ao.quantization
    alias = alias_torch_ao()
    assert sys.modules["torch.ao.quantization"] is not before["torch.ao.quantization"]
    alias.undo()
    alias.undo()
    assert {name: sys.modules.get(name) for name in names} == before
    assert torch.ao.quantization is attribute


def test_aliases_nest():
    attribute = torch.ao.quantization
    with alias_torch_ao():
        with alias_torch_ao():
            assert torch.ao.quantization.prepare is quantization.prepare
        assert torch.ao.quantization.prepare is quantization.prepare
    assert torch.ao.quantization is attribute


def test_a_function_hides_the_submodule_of_its_name_as_in_torch_ao():
    with alias_torch_ao():
        assert torch.ao.quantization.quantize is quantization.quantize
        assert importlib.import_module("torch.ao.quantization.quantize").prepare is quantization.prepare


def test_patching_a_name_reaches_our_code():
    from quantization.workflows import ptq

    before = ptq.no_observer_set
    with alias_torch_ao():
        module = sys.modules["torch.ao.quantization.quantize"]
        with mock.patch.object(module, "no_observer_set", lambda: {"patched"}):
            assert ptq.no_observer_set() == {"patched"}
        assert ptq.no_observer_set is before
        module.no_observer_set = set
        assert ptq.no_observer_set is set
        module.no_observer_set = before
    assert ptq.no_observer_set is before


@pytest.mark.parametrize(
    "name",
    [
        "_observer_forward_hook",
        "_remove_qconfig",
        "_add_observer_",
        "_convert",
        "_register_activation_post_process_hook",
    ],
)
def test_private_names_that_programs_use(name: str):
    with alias_torch_ao():
        module = sys.modules["torch.ao.quantization.quantize"]
        assert getattr(module, name).__module__.startswith("quantization.")


def test_an_unknown_name_is_an_attribute_error():
    with alias_torch_ao(), pytest.raises(AttributeError):
        torch.ao.quantization.no_such_name  # noqa: B018


def test_a_program_runs_unedited_without_torch_ao():
    """With torch.ao's own modules gone from `sys.modules` and their import blocked."""
    program = """
        import sys, warnings
        import torch
        import quantization.compat

        for name in [n for n in sys.modules if n.startswith(("torch.ao", "torch.quantization"))]:
            del sys.modules[name]
        del torch.ao
        class Block:
            def find_spec(self, name, path=None, target=None):
                gone = "torch.ao", "torch.quantization", "torch.nn.quantized", "torch.nn.intrinsic"
                if name.startswith(gone):
                    raise ImportError(f"blocked: {name}")
        sys.meta_path.insert(0, Block())
        warnings.simplefilter("error")
        quantization.compat.alias_torch_ao()

        import torch.ao.quantization as tq
        model = torch.nn.Sequential(tq.QuantStub(), torch.nn.Linear(4, 2), tq.DeQuantStub()).eval()
        model.qconfig = tq.get_default_qconfig("x86")
        prepared = tq.prepare(model)
        prepared(torch.randn(8, 4))
        converted = tq.convert(prepared)
        print(type(converted[1]).__module__, converted(torch.randn(3, 4)).shape)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["quantization.nn.quantized", "torch.Size([3,", "2])"]


class Own(torch.nn.Linear):
    """A subclass that our exact-type checks refuse, unless a program patches `type` as it did in torch.ao."""


@pytest.mark.parametrize(
    "module, convert",
    [
        ("torch.nn.quantized.modules.linear", lambda: quantized.Linear.from_float(_observed(Own(2, 2)))),
        ("torch.nn.qat.modules.linear", lambda: qat.Linear.from_float(_observed(Own(2, 2)))),
    ],
)
def test_patching_type_lets_subclasses_pass(module: str, convert):
    with alias_torch_ao():
        target = sys.modules[module]
        with pytest.raises(ValueError, match="only works for Linear"):
            convert()
        with mock.patch.object(target, "type", lambda m: torch.nn.Linear if isinstance(m, Own) else type(m)):
            assert type(convert()).__name__ == "Linear"
        with pytest.raises(ValueError, match="only works for Linear"):
            convert()


def _observed(module: torch.nn.Module) -> torch.nn.Module:
    module.qconfig = quantization.default_qat_qconfig
    return module


def test_tables_changed_under_an_old_name_are_ours():
    with alias_torch_ao():
        table = sys.modules["torch.quantization.quantization_mappings"].DEFAULT_STATIC_QUANT_MODULE_MAPPINGS
        with mock.patch.dict(table, {Own: quantized.Linear}):
            assert quantization.get_default_static_quant_module_mappings()[Own] is quantized.Linear
    assert Own not in quantization.get_default_static_quant_module_mappings()


def test_patching_a_function_of_fuse_modules_reaches_our_code():
    from quantization.workflows import fusing

    with alias_torch_ao():
        module = sys.modules["torch.ao.quantization.fuse_modules"]
        with mock.patch.object(module, "fuse_known_modules", None):
            assert fusing.fuse_known_modules is None
    assert fusing.fuse_known_modules is not None
