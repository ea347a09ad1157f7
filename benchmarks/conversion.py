"""Convert a stack of linear layers and say what it took: `python -m benchmarks.conversion SPEC`.

SPEC is JSON: library, engine, flow ("dynamic" or "static"), inplace, layers, width, threads. Prints one list
of `[step, seconds, peak, sqnr]`; the peak is resident memory above that before the step, over the size of the
float weights.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.checks import as_tensor, sqnr
from benchmarks.libraries import LIBRARIES, installed
from benchmarks.machine import pin

Step = tuple[str, float, float | None, float | None]


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def watched(action: Callable[[], Any]) -> tuple[Any, float, int]:
    """What an action gives, its seconds, and the highest memory above that before it, in bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    start = time.perf_counter()
    result = action()
    seconds = time.perf_counter() - start
    return result, seconds, max(0, _status("VmHWM") - before)


def _size(spec: dict[str, Any]) -> int:
    return spec["layers"] * (spec["width"] ** 2 + spec["width"]) * 4


class Flow:
    """The steps of one way to quantize, on one model."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.inplace = spec, spec["inplace"]
        self.q = LIBRARIES[spec["library"]]().q
        self.x = models.seeded(0, 4, spec["width"])
        self.steps: list[Step] = []

    def model(self) -> Any:
        """The float stack."""
        return models.linear_stack(self.spec["layers"], self.spec["width"])

    def step(self, name: str, action: Callable[[], Any], expected: Tensor | None = None) -> Any:
        """Do it, and note what it took."""
        result, seconds, peak = watched(action)
        noise = None if expected is None else sqnr(expected, as_tensor(result(self.x)))
        self.steps.append((name, seconds, peak / _size(self.spec), noise))
        return result

    def dynamic(self) -> None:
        """quantize_dynamic, then to a file and back."""
        model = self.model()
        expected = as_tensor(model(self.x))
        convert = lambda: self.q.quantize_dynamic(model, {nn.Linear}, inplace=self.inplace)  # noqa: E731
        quantized = self.step("quantize_dynamic", convert, expected)
        if not self.inplace:
            del model, convert
            self._files(quantized, expected)

    def static(self) -> None:
        """prepare, calibration, convert; the model that a step replaces is let go of."""
        model = models.Stubbed(self.model(), LIBRARIES[self.spec["library"]]().parts).eval()
        expected = as_tensor(model(self.x))
        model.qconfig = self.q.get_default_qconfig(self.spec["engine"])
        held = [model]
        del model
        held[0] = self.step("prepare", lambda: self.q.prepare(held[0], inplace=self.inplace), expected)
        held[0] = self.step("convert", lambda: self.q.convert(held[0], inplace=self.inplace), expected)

    def _files(self, quantized: nn.Sequential, expected: Tensor) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.pt"
            torch.save(quantized.state_dict(), path)
            self._file("state dict", path)

            def load() -> nn.Module:
                quantized.load_state_dict(torch.load(path))
                return quantized

            self.step("state dict: load", load, expected)
            if self.spec["library"] == "ours" and installed("safetensors"):
                path = Path(folder) / "model.eq"
                self.q.save(quantized, path)
                self._file("quantization.save", path)
                with torch.device("meta"):
                    shell = nn.Sequential(*(nn.Linear(*[self.spec["width"]] * 2) for _ in quantized)).eval()
                self.step("quantization.save: load", lambda: self.q.load(path, shell), expected)

    def _file(self, name: str, path: Path) -> None:
        self.steps.append((f"{name}: file", 0.0, os.path.getsize(path) / _size(self.spec), None))


def main(spec: dict[str, Any]) -> list[Step]:
    """Go through the flow; before it through a small one, so that no import is measured."""
    warnings.simplefilter("ignore")
    pin(spec["threads"])
    torch.backends.quantized.engine = spec["engine"]
    with torch.no_grad():
        for size in ({"layers": 2, "width": 64}, {}):
            flow = Flow({**spec, **size})
            getattr(flow, spec["flow"])()
    return flow.steps


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
