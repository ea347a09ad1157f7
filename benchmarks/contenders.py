"""Who takes part in the inference cases, each from the same float model and input."""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import onnx_models
from benchmarks.libraries import FLOAT, LIBRARIES, Library, Parts, default_engine, engines
from benchmarks.model import Contender, Gap
from benchmarks.timing import Local

NO_NATIVE = (("EAGERQUANT_NATIVE", "0"),)
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Subject:
    """A float model, built with the parts of whatever library shall quantize it, and its input.

    `fusions` are the modules to fuse; without `calibration` there is no static quantization.
    """

    model: Callable[[Parts], nn.Module]
    x: Tensor
    calibration: Sequence[Tensor] = ()
    quantized_types: frozenset[type[nn.Module]] = frozenset({nn.Linear})

    @functools.cached_property
    def float_model(self) -> nn.Module:
        """The float model itself, batch norms folded."""
        return _fused(LIBRARIES["ours"](), self.model(FLOAT))

    @functools.cached_property
    def onnx(self) -> Path:
        """The float model as a file."""
        return onnx_models.export(self.float_model, self.x, f"model{next(_numbers)}")

    @functools.cached_property
    def onnx_int8(self) -> Path:
        """The model as ONNX Runtime quantizes it; full range where the CPU has VNNI, as its manual says."""
        if self.calibration:
            return onnx_models.quantized_static(self.onnx, self.calibration, not has_vnni())
        return onnx_models.quantized_dynamic(self.onnx, not has_vnni())


@functools.cache
def has_vnni() -> bool:
    """Whether sums of int8 products fit: without VNNI they saturate at 16 bits."""
    return bool(torch.cpu._is_vnni_supported())


def _fused(library: Library, model: nn.Module) -> nn.Module:
    fusions = getattr(model, "fusions", list)()
    return library.q.fuse_modules(model, fusions) if fusions else model


# --- float ---


def _float(subject: Subject) -> Local:
    return _in_dtype(torch.float32, subject)


def _in_dtype(dtype: torch.dtype, subject: Subject) -> Local:
    """The float model in a dtype; images and their weights channels last, which suits torch's kernels."""
    model: Any = copy.deepcopy(subject.float_model).to(dtype)
    if subject.x.dim() == 4:
        model = model.to(memory_format=torch.channels_last)
    return Local(functools.partial(model, subject.x.to(dtype)))


def _bfloat16(subject: Subject) -> Local:
    return _in_dtype(torch.bfloat16, subject)


# --- eager quantization: ours and torch.ao ---


def dynamic(name: str, engine: str, subject: Subject) -> Local:
    """Quantized by `quantize_dynamic`, default qconfig."""
    torch.backends.quantized.engine = engine
    library = LIBRARIES[name]()
    model = library.q.quantize_dynamic(subject.model(FLOAT), set(subject.quantized_types))
    return Local(functools.partial(model, subject.x), engine)


def _dynamic_with(qconfig: str, engine: str, subject: Subject) -> Local:
    torch.backends.quantized.engine = engine
    q = LIBRARIES["ours"]().q
    recipe = getattr(q, qconfig, None)
    if recipe is None:
        raise Gap(f"this version has no {qconfig}")
    spec = {kind: recipe for kind in subject.quantized_types}
    return Local(functools.partial(q.quantize_dynamic(subject.model(FLOAT), spec), subject.x), engine)


def prepared_model(name: str, engine: str, subject: Subject, qconfig: Any = None) -> nn.Module:
    """Fused and prepared; with the engine's default qconfig where none is given."""
    torch.backends.quantized.engine = engine
    library = LIBRARIES[name]()
    model: Any = _fused(library, subject.model(library.parts))
    model.qconfig = qconfig or library.q.get_default_qconfig(engine)
    return library.q.prepare(model)


def static_model(name: str, engine: str, subject: Subject) -> nn.Module:
    """Fused, prepared, calibrated and converted."""
    prepared = prepared_model(name, engine, subject)
    with torch.no_grad():
        for batch in subject.calibration:
            prepared(batch)
    return LIBRARIES[name]().q.convert(prepared)


def static(name: str, engine: str, subject: Subject) -> Local:
    """The converted model, called as it is."""
    return Local(functools.partial(static_model(name, engine, subject), subject.x), engine)


def _static_scripted(name: str, engine: str, subject: Subject) -> Local:
    scripted = torch.jit.script(static_model(name, engine, subject))
    return Local(functools.partial(torch.jit.freeze(scripted), subject.x), engine)


# --- others ---


def _torchao(subject: Subject) -> Local:
    if not any(isinstance(module, nn.Linear) for module in subject.float_model.modules()):
        raise Gap("torchao quantizes linear layers only")
    if nn.LSTM in subject.quantized_types:
        raise Gap("torchao has no LSTM or GRU")
    q = importlib.import_module("torchao.quantization")
    model = copy.deepcopy(subject.float_model)
    q.quantize_(model, q.Int8DynamicActivationInt8WeightConfig())
    return Local(functools.partial(model, subject.x))


def _torchao_compiled(subject: Subject) -> Local:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise Gap("torch.compile needs a C++ compiler")
    runner = _torchao(subject)
    torch.compiler.reset()
    return Local(torch.compile(runner.run))


def _onnxruntime_float(subject: Subject) -> Local:
    return Local(onnx_models.run_onnxruntime(subject.onnx, subject.x))


def _onnxruntime(subject: Subject) -> Local:
    return Local(onnx_models.run_onnxruntime(subject.onnx_int8, subject.x))


def _openvino_float(subject: Subject) -> Local:
    return Local(onnx_models.run_openvino(subject.onnx, subject.x))


def _openvino(subject: Subject) -> Local:
    return Local(onnx_models.run_openvino(subject.onnx_int8, subject.x))


ORT, OPENVINO = ("onnx", "onnxruntime"), ("onnx", "onnxruntime", "openvino")
_FLOAT = (
    Contender("float", _float),
    Contender("float bfloat16", _bfloat16),
    Contender("ONNX Runtime float", _onnxruntime_float, ORT),
    Contender("OpenVINO float", _openvino_float, OPENVINO),
)
_EXPORTED = (
    Contender("ONNX Runtime int8", _onnxruntime, ORT),
    Contender("OpenVINO int8", _openvino, OPENVINO),
)


def label(engine: str) -> str:
    """The engine by the name it has in our library: torch's default stands for the automatic choice."""
    return "auto" if engine == default_engine() else engine


def eager(build: Callable[[str, str, Any], Local], prefix: str = "") -> tuple[Contender, ...]:
    """torch.ao and ours on each engine, and ours without its compiled kernels."""
    theirs = [
        Contender(
            f"{prefix}torch.ao {e}", functools.partial(build, "torch.ao", e), ("torch.ao.quantization",)
        )
        for e in engines()
    ]
    mine = [Contender(f"{prefix}ours {label(e)}", functools.partial(build, "ours", e)) for e in engines()]
    plain = functools.partial(build, "ours", default_engine())
    return *theirs, *mine, Contender(f"{prefix}ours auto, no kernels", plain, environment=NO_NATIVE)


def pair(build: Callable[[str, Any], Local]) -> tuple[Contender, ...]:
    """torch.ao, ours and ours without its compiled kernels, where the engine does not matter."""
    mine = functools.partial(build, "ours")
    return (
        Contender("torch.ao", functools.partial(build, "torch.ao"), ("torch.ao.quantization",)),
        Contender("ours", mine),
        Contender("ours, no kernels", mine, environment=NO_NATIVE),
    )


def on_default_engine(build: Callable[[str, str, Any], Local], prefix: str) -> tuple[Contender, ...]:
    """torch.ao and ours on the default engine."""
    names = (f"{prefix}torch.ao {default_engine()}", f"{prefix}ours auto")
    return tuple(c for c in eager(build, prefix) if c.name in names)


def dynamic_contenders() -> tuple[Contender, ...]:
    """Everyone, for dynamic quantization."""
    compiled = Contender("torchao compiled", _torchao_compiled, ("torchao",), in_quick=False)
    accurate = tuple(
        Contender(f"ours {name}", functools.partial(_dynamic_with, qconfig, default_engine()))
        for name, qconfig in (
            ("full range", "full_range_dynamic_qconfig"),
            ("per row", "per_row_dynamic_qconfig"),
        )
    )
    torchao = Contender("torchao", _torchao, ("torchao",))
    return *_FLOAT, *_EXPORTED, torchao, compiled, *eager(dynamic), *accurate


def static_contenders() -> tuple[Contender, ...]:
    """Everyone, for static quantization of convolutional networks."""
    scripted = on_default_engine(_static_scripted, "scripted ")
    return *_FLOAT, *_EXPORTED, Contender("torchao", _no_torchao), *eager(static), *scripted


def _no_torchao(_: Subject) -> Local:
    raise Gap("torchao has no static int8 convolution")
