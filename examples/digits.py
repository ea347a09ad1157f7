"""A small residual CNN on scikit-learn's handwritten digits, through every eager quantization workflow.

It trains the float network for some seconds, quantizes it four ways, saves each model, loads all of them in a
fresh process and compares them there. Exit status 1: a quantized model lost more than one point of accuracy.

    python examples/digits.py            # about a minute on two cores
    python examples/digits.py --quick    # fewer epochs, for a smoke test
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import quantization as q
from quantization.nn.functional_modules import FloatFunctional

BATCH = 64
ENGINE = torch.backends.quantized.engine
WORST_LOSS = 1.0  # points of accuracy a quantized model may lose

Feed = Callable[[nn.Module], None]  # shows data to a prepared model: calibration, or training


# --- the network ---


class ConvBnReLU(nn.Sequential):
    """3x3 convolution, batch norm, ReLU: fused into one module before quantization."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside a skip connection; the sum is a module, so that it can be observed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBnReLU(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.skip = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip.add_relu(x, self.second(self.first(x)))


class DigitNet(nn.Module):
    """8x8 images to ten logits. The stubs mark where tensors become quantized and float again."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.quant = q.QuantStub()
        self.body = nn.Sequential(
            ConvBnReLU(1, width),
            Residual(width),
            ConvBnReLU(width, 2 * width, stride=2),
            Residual(2 * width),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(2 * width, 10)
        self.dequant = q.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        features = torch.flatten(self.body(self.quant(x)), 1)
        return self.dequant(self.head(features))


def fusable(model: nn.Module) -> list[list[str]]:
    """The dotted names of every conv-bn(-relu) run of the network."""
    runs = {name: m for name, m in model.named_modules() if name and isinstance(m, nn.Sequential)}
    return [[f"{name}.{i}" for i in range(len(m))] for name, m in runs.items() if isinstance(m[0], nn.Conv2d)]


# --- the four workflows: a float model and a way to feed it in, a quantized model out ---


def static(model: nn.Module, qconfig: q.QConfig, feed: Feed) -> nn.Module:
    """Observe activations on some batches, then swap every layer for an int8 one."""
    fused = q.fuse_modules(model.eval(), fusable(model))
    fused.qconfig = qconfig
    prepared = q.prepare(fused)
    feed(prepared)
    return q.convert(prepared)


def static_per_tensor(model: nn.Module, feed: Feed) -> nn.Module:
    return static(model, q.default_qconfig, feed)


def static_per_channel(model: nn.Module, feed: Feed) -> nn.Module:
    return static(model, q.default_per_channel_qconfig, feed)


def dynamic(model: nn.Module, feed: Feed) -> nn.Module:
    """Quantize the weights of linear layers now, their inputs at run time. Needs no data."""
    return q.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)


def qat(model: nn.Module, feed: Feed) -> nn.Module:
    """Train on with rounding simulated in the forward pass, then swap."""
    fused = q.fuse_modules_qat(model.train(), fusable(model))
    fused.qconfig = q.get_default_qat_qconfig(ENGINE)
    prepared = q.prepare_qat(fused)
    feed(prepared)
    return q.convert(prepared.eval())


WORKFLOWS: dict[str, Callable[[nn.Module, Feed], nn.Module]] = {
    "static, per tensor": static_per_tensor,
    "static, per channel": static_per_channel,
    "dynamic (the head)": dynamic,
    "QAT": qat,
}


# --- data, training, calibration ---


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels: for training, and held out."""
    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(targets)
    index = train_test_split(range(len(targets)), test_size=0.25, stratify=targets, random_state=0)
    train, test = map(torch.tensor, index)
    return images[train], labels[train], images[test], labels[test]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float, title: str) -> None:
    """One-cycle AdamW on cross-entropy."""
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc=title, unit="batch", mininterval=0.5) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(images))[: len(images) // BATCH * BATCH]
            for batch in order.split(BATCH):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor, title: str) -> None:
    """Run a prepared model on training images; its observers note the ranges."""
    for batch in tqdm(images.split(BATCH), desc=title, unit="batch", mininterval=0.5):
        model(batch)


def glance(model: nn.Module) -> None:
    """One blank image: enough for a model that is about to get its numbers from a state dict."""
    model(torch.zeros(1, 1, 8, 8))


# --- comparing, in a fresh process ---


def files(folder: Path) -> dict[str, Path]:
    """Where the state dict of each model lies."""
    return {name: folder / f"{i}.pt" for i, name in enumerate(["float", *WORKFLOWS])}


def restore(name: str, file: Path) -> nn.Module:
    """The saved model: the same steps on an untrained network, then the saved state."""
    model: nn.Module = DigitNet().eval()
    if name in WORKFLOWS:
        model = WORKFLOWS[name](model, glance)
    model.load_state_dict(torch.load(file))
    return model.eval()


@torch.no_grad()
def evaluate(folder: Path) -> dict[str, dict[str, float]]:
    """Accuracy in percent and median milliseconds per batch, of every model saved in `folder`."""
    _, _, images, labels = load()
    models = {name: restore(name, file) for name, file in files(folder).items()}
    results = {}
    for name, model in models.items():
        hits = (model(images).argmax(1) == labels).sum().item()
        results[name] = {"accuracy": 100 * hits / len(labels)}
    torch.set_num_threads(1)  # threads would measure the scheduler on batches as small as these
    laps: dict[str, list[float]] = {name: [] for name in models}
    for lap in range(60):  # turn by turn, so that a busy moment of the machine hits every model
        for name, model in models.items():
            start = time.perf_counter()
            model(images[:BATCH])
            if lap >= 10:
                laps[name].append(1000 * (time.perf_counter() - start))
    for name, times in laps.items():
        results[name]["latency"] = statistics.median(times)
    return results


def evaluate_elsewhere(folder: Path) -> dict[str, dict[str, float]]:
    """`evaluate` in a new Python process, which shares nothing with this one but the saved files."""
    command = [sys.executable, __file__, "--evaluate", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def table(results: dict[str, dict[str, float]], sizes: dict[str, int]) -> str:
    """Accuracy, size on disk and latency of every model, and how the last two compare with float."""
    heads = ("accuracy", "size", "of float", "ms per batch", "speed-up")
    lines = [f"{'model':<20}" + "".join(f"{head:>13}" for head in heads)]
    lines.append("-" * len(lines[0]))
    for name, row in results.items():
        cells = (
            f"{row['accuracy']:.1f} %",
            f"{sizes[name] / 1024:.0f} KiB",
            f"{sizes[name] / sizes['float']:.2f}",
            f"{row['latency']:.2f}",
            f"{results['float']['latency'] / row['latency']:.2f}",
        )
        lines.append(f"{name:<20}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def fallen(results: dict[str, dict[str, float]]) -> list[str]:
    """The models more than one point of accuracy under float."""
    floor = results["float"]["accuracy"] - WORST_LOSS
    return [name for name, row in results.items() if row["accuracy"] < floor]


def main(epochs: int) -> int:
    torch.manual_seed(0)
    images, labels, *_ = load()
    model = DigitNet()
    train(model, images, labels, epochs, rate=0.01, title="train float")
    feeds: dict[str, Feed] = {
        "QAT": lambda prepared: train(prepared, images, labels, max(1, epochs // 4), 0.001, "train QAT"),
    }
    converted: dict[str, nn.Module] = {"float": model.eval()}
    for name, workflow in WORKFLOWS.items():
        feed = feeds.get(name, lambda prepared, name=name: calibrate(prepared, images, f"calibrate {name}"))
        converted[name] = workflow(copy.deepcopy(model), feed)
    with tempfile.TemporaryDirectory() as folder:
        places = files(Path(folder))
        for name, place in places.items():
            torch.save(converted[name].state_dict(), place)
        sizes = {name: place.stat().st_size for name, place in places.items()}
        results = evaluate_elsewhere(Path(folder))

    print("\nWhat became of each module in 'static, per channel':\n")
    print(q.summary(converted["static, per channel"]))
    print(f"\nLoaded in a fresh process; engine {ENGINE}, batches of {BATCH}, one thread:\n")
    print(table(results, sizes))
    lost = fallen(results)
    if lost:
        print(f"\nMore than {WORST_LOSS:g} point under float: {', '.join(lost)}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="train for fewer epochs")
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.evaluate:
        print(json.dumps(evaluate(arguments.evaluate)))
        sys.exit()
    sys.exit(main(epochs=4 if arguments.quick else 12))
