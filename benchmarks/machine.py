"""The machine, its versions, and holding everyone to the same cores."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = ("torch", "torchao", "onnxruntime", "openvino", "onnx", "numpy")


def cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(threads: int) -> None:
    """Keep this process, and those it starts, on as many cores as it has threads."""
    chosen = cores()[:threads]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def describe() -> dict[str, Any]:
    """What a reader needs to know about where and when the figures were taken."""
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "family": " ".join(
            f"{key} {info[key]}" for key in ("cpu family", "model", "stepping") if key in info
        ),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": len(cores()),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "kernels": _native_levels(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _native_levels() -> str:
    try:
        from eagerquant_native import library
    except ImportError:
        return "none"
    return (library.levels() or ("none",))[-1]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
