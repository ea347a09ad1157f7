"""A picture for each case: every contender beside torch.ao, a line for each variant."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.libraries import installed
from benchmarks.model import Case, Row
from benchmarks.ratios import fastest, places

# By a part of a contender's name, the first that fits.
COLOURS = (
    ("ours", "#d62728"),
    ("torch.ao", "#1f77b4"),
    ("torchao", "#8c564b"),
    ("ONNX Runtime", "#2ca02c"),
    ("OpenVINO", "#9467bd"),
    ("", "#7f7f7f"),
)
MARKERS = "osD^vP*Xh<>"


def draw(case: Case, rows: Sequence[Row], path: Path) -> Path | None:
    """Write the picture as SVG; None without matplotlib or without anything to show."""
    lines = [(place, there, base) for place, there in places(rows).items() if (base := _base(case, there))]
    if not lines or not installed("matplotlib"):
        return None
    pyplot = _pyplot()
    styles = _styles(rows)
    height = max(1.2 + 0.3 * len(lines), 0.5 + 0.17 * len(styles))
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    for name, style in styles.items():
        points = [
            (row.median / base.median, -line)
            for line, (_, there, base) in enumerate(lines)
            for row in there
            if row.contender == name and row.status == "ok"
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), label=name, s=36, alpha=0.85, linewidths=0, **style)
    axes.set_xscale("log")
    axes.axvline(1, color="#1f77b4", linewidth=0.8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks([-line for line in range(len(lines))], [", ".join(place) for place, _, _ in lines])
    axes.set_xlabel(f"relative to {case.baseline.strip('*')} at its best, left is better")
    axes.grid(axis="x", which="both", linewidth=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _base(case: Case, rows: Sequence[Row]) -> Row | None:
    return fastest(rows, case.baseline) or fastest(rows, "*")


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """A colour for the family of a contender, and a marker for its place there."""
    styles, seen = {}, dict.fromkeys((colour for _, colour in COLOURS), 0)
    for name in dict.fromkeys(row.contender for row in rows):
        colour = next(colour for prefix, colour in COLOURS if prefix in name)
        styles[name] = {"color": colour, "marker": MARKERS[seen[colour] % len(MARKERS)]}
        seen[colour] += 1
    return styles


def _pyplot() -> Any:
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "eagerquant"  # the same picture is the same file
    return importlib.import_module("matplotlib.pyplot")
