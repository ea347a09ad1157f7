"""What an import costs beyond `import torch`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contenders import NO_NATIVE
from benchmarks.libraries import installed
from benchmarks.model import Case, Options, Row, Variant
from benchmarks.processes import answer

CODE = "import time; {first}; a = time.perf_counter(); {second}; print(time.perf_counter() - a)"
# name, what is measured, what was imported before, the package it needs, environment
IMPORTS: tuple[tuple[str, str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ("ours", "import quantization", "import torch", "quantization", ()),
    ("ours, no kernels", "import quantization", "import torch", "quantization", NO_NATIVE),
    ("torch.ao", "import torch.ao.quantization", "import torch", "torch.ao.quantization", ()),
    ("torchao", "import torchao.quantization", "import torch", "torchao", ()),
    ("ONNX Runtime", "import onnxruntime", "import torch", "onnxruntime", ()),
    ("OpenVINO", "import openvino", "import torch", "openvino", ()),
    ("torch itself", "import torch", "pass", "torch", ()),
)
IN_QUICK = ("ours", "torch.ao", "torch itself")


def _measure(case: Case, variant: Variant, options: Options) -> Iterator[Row]:
    chosen = [entry for entry in IMPORTS if not options.quick or entry[0] in IN_QUICK]
    rows = {name: Row(variant.group, variant.name, name) for name, *_ in chosen}
    for lap in range((1 if options.quick else min(options.rounds, 5)) + 1):
        for name, second, first, package, environment in chosen:
            row = rows[name]
            if row.status != "ok":
                continue
            if not installed(package):
                row.status, row.note = "not installed", f"{package}: not installed"
                continue
            try:
                seconds = answer(["-c", CODE.format(first=first, second=second)], environment)
            except RuntimeError as error:
                row.status, row.note = "error", str(error)[:160]
                continue
            if lap:  # the first fills the file cache
                row.samples.append(seconds)
    yield from rows.values()


CASE = Case(
    "imports",
    "Imports",
    lambda: [Variant("seconds", "beyond import torch", lambda: None, (), True)],
    _measure,
    baseline="ours",
)
