"""One line of dynamic quantization on a transformer encoder: size, latency, and how far the output moves.

python examples/encoder.py            # a few seconds on two cores
python examples/encoder.py --quick    # a smaller encoder, for a smoke test
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time

import torch
from torch import Tensor, nn

import quantization

BATCH, LENGTH = 8, 64
LEAST_SQNR = 20.0  # dB; int8 noise at a hundredth of the signal's power


def encoder(width: int, layers: int) -> nn.TransformerEncoder:
    """A post-norm encoder in evaluation mode, where torch takes its fused fast path on float weights."""
    layer = nn.TransformerEncoderLayer(width, nhead=8, dim_feedforward=4 * width, batch_first=True)
    return nn.TransformerEncoder(layer, layers).eval()


def size(model: nn.Module) -> int:
    """Bytes of the saved state dict."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def latency(models: list[nn.Module], x: Tensor, rounds: int) -> list[float]:
    """Median milliseconds per batch of each model, measured turn by turn on one thread."""
    torch.set_num_threads(1)
    laps: list[list[float]] = [[] for _ in models]
    for lap in range(rounds + 3):
        for model, times in zip(models, laps, strict=True):
            start = time.perf_counter()
            model(x)
            if lap >= 3:
                times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times) for times in laps]


def sqnr(expected: Tensor, got: Tensor) -> float:
    """Signal to quantization-noise ratio in decibels: 20 log10(|expected| / |expected - got|)."""
    return 20 * torch.log10(expected.norm() / (expected - got).norm()).item()


@torch.no_grad()
def main(width: int, layers: int, rounds: int) -> int:
    torch.manual_seed(0)
    model = encoder(width, layers)
    x = torch.randn(BATCH, LENGTH, width)

    quantized = quantization.quantize_dynamic(model)  # the whole recipe

    ratio = sqnr(model(x), quantized(x))
    float_ms, int8_ms = latency([model, quantized], x, rounds)
    before, after = size(model), size(quantized)
    counts = quantization.summary(quantized).counts()
    print(", ".join(f"{count} modules {state}" for state, count in counts.items() if count))
    print(
        f"\n{layers} layers of width {width}, evaluation mode, batch {BATCH} x {LENGTH} tokens, one thread\n"
    )
    print(f"{'':<10}{'float':>14}{'int8':>14}{'ratio':>10}")
    print(f"{'size':<10}{before / 2**20:>10.1f} MiB{after / 2**20:>10.1f} MiB{after / before:>10.2f}")
    print(f"{'latency':<10}{float_ms:>11.1f} ms{int8_ms:>11.1f} ms{int8_ms / float_ms:>10.2f}")
    print(f"{'SQNR':<10}{'':>14}{ratio:>11.1f} dB")
    return 0 if ratio >= LEAST_SQNR else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller encoder and fewer rounds")
    sys.exit(main(64, 2, 3) if parser.parse_args().quick else main(512, 6, 15))
