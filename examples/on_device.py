"""On-device dynamic quantization from end to end: a server ships a file, a device quantizes it by itself.

python examples/on_device.py            # a few seconds on two cores
python examples/on_device.py --quick    # a smaller model, for a smoke test

The server adds helper methods to a script module, bundles one input and writes a file for the lite
interpreter. The device is a fresh process that knows nothing of the model: it loads the file, finalizes it
and answers. The server compares the answer with the float model and with `quantize_dynamic_jit`.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit.mobile import _load_for_lite_interpreter
from torch.utils.bundled_inputs import bundle_inputs, bundle_randn

import quantization
from quantization.torchscript import finalize, quantize_ondevice_dynamic_jit

LEAST_SQNR = 25.0  # dB
MOST_SHIPPED = 1.1  # of the float file
MOST_FINAL = 0.35

# TorchScript and the lite interpreter announce their end at each call. This example is about them.
OUTDATED = r".*(torch\.jit\..* is deprecated|Lite Interpreter is deprecated)"


def classifier(width: int) -> nn.Module:
    """Where the bytes are in linear layers, which is what dynamic quantization packs."""
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(*layers).eval()


def server(folder: Path, width: int) -> tuple[Any, Any]:
    """Write what is shipped, the inputs the device will see, and the float and off-device files to "
    "compare."""
    model = torch.jit.script(classifier(width))
    qconfigs = {"": quantization.default_dynamic_qconfig}
    shipped = quantize_ondevice_dynamic_jit(model, qconfigs)
    # bundle_randn keeps the shape only, so the input itself takes no room in the file.
    shipped = bundle_inputs(shipped, [(bundle_randn(1, width),)])
    off_device = quantization.quantize_dynamic_jit(model, qconfigs)
    for name, script in (("float", model), ("shipped", shipped), ("off-device", off_device)):
        (folder / f"{name}.ptl").write_bytes(script._save_to_buffer_for_lite_interpreter())
    torch.save(torch.randn(64, width), folder / "inputs.pt")
    return model, off_device


def device(folder: Path) -> None:
    """In another process: finalize the shipped file, twice over, and write down the answers.

    The lite interpreter is what a phone has. A plain script module of the same file shows the same flow with
    ordinary tools, and can be saved again.
    """
    x = torch.load(folder / "inputs.pt")
    file = (folder / "shipped.ptl").read_bytes()
    lite = finalize(_load_for_lite_interpreter(io.BytesIO(file)))
    plain = finalize(torch.jit.load(io.BytesIO(file)))
    (folder / "finalized.ptl").write_bytes(plain._save_to_buffer_for_lite_interpreter())
    torch.save({"lite": lite(x), "plain": plain(x)}, folder / "answers.pt")


def run_device(folder: Path) -> None:
    """Start the device's process and wait for it."""
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, __file__, "--device", str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True)


def sqnr(expected: Tensor, got: Tensor) -> float:
    """Signal to quantization-noise ratio in decibels: 20 log10(|expected| / |expected - got|)."""
    return 20 * torch.log10(expected.norm() / (expected - got).norm()).item()


def report_sizes(folder: Path) -> list[str]:
    """Print the size of each stage and why it is what it is; return what is larger than it may be."""
    sizes = {n: (folder / f"{n}.ptl").stat().st_size for n in ("float", "shipped", "finalized", "off-device")}
    reasons = {
        "float": "32-bit weights",
        "shipped": "the float weights, once: observers are a few numbers, the packed weights are still empty",
        "finalized": "8-bit weights; finalizing emptied the float ones",
        "off-device": "8-bit weights, packed on the server",
    }
    print(f"{'stage':<12}{'KiB':>8}{'of float':>10}   what is in it")
    for stage, size in sizes.items():
        print(f"{stage:<12}{size / 1024:>8.0f}{size / sizes['float']:>10.2f}   {reasons[stage]}")
    most = {"shipped": MOST_SHIPPED, "finalized": MOST_FINAL}
    return [
        f"{stage} file is {sizes[stage] / sizes['float']:.2f} of the float one, at most {limit} was expected"
        for stage, limit in most.items()
        if sizes[stage] > limit * sizes["float"]
    ]


@torch.no_grad()
def compare(folder: Path, model: Any, off_device: Any) -> list[str]:
    """Print how far the device's answers are from the float model's; return what does not match."""
    x, answers = torch.load(folder / "inputs.pt"), torch.load(folder / "answers.pt")
    expected, reference = model(x), off_device(x)
    wrong = []
    for name, answer in answers.items():
        ratio, equal = sqnr(expected, answer), torch.equal(answer, reference)
        print(
            f"{name:<6} SQNR {ratio:5.1f} dB, {'equal to' if equal else 'differs from'} quantize_dynamic_jit"
        )
        wrong += [] if equal else [f"{name}: the outputs differ from quantize_dynamic_jit"]
        wrong += (
            []
            if ratio >= LEAST_SQNR
            else [f"{name}: SQNR {ratio:.1f} dB, at least {LEAST_SQNR} was expected"]
        )
    return wrong


def main(width: int) -> int:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, off_device = server(folder, width)
        run_device(folder)
        wrong = report_sizes(folder)
        print()
        wrong += compare(folder, model, off_device)
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model")
    parser.add_argument(
        "--device", type=Path, metavar="FOLDER", help="play the device (started by the server)"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=OUTDATED)
    if arguments.device:
        device(arguments.device)
    else:
        sys.exit(main(256 if arguments.quick else 1024))
