"""The examples run as a reader runs them, in a process of their own, with warnings as errors."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.house import ROOT

WORKFLOWS = ("static, per tensor", "static, per channel", "dynamic (the head)", "QAT")


def _run(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), "--quick"]
    # By environment, not by `-W`, so that processes the example starts are held to it too.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits() -> subprocess.CompletedProcess[str]:
    return _run("digits.py")


def test_digits_succeeds(digits: subprocess.CompletedProcess[str]) -> None:
    assert digits.returncode == 0, digits.stdout + digits.stderr
    assert "Warning" not in digits.stderr


def test_digits_shows_progress(digits: subprocess.CompletedProcess[str]) -> None:
    for title in (
        "train float",
        "calibrate static, per tensor",
        "calibrate static, per channel",
        "train QAT",
    ):
        assert f"{title}: 100%" in digits.stderr


@pytest.mark.parametrize("name", ("float", *WORKFLOWS))
def test_digits_reports(name: str, digits: subprocess.CompletedProcess[str]) -> None:
    row = re.search(rf"^{re.escape(name)} +([\d.]+) % +(\d+) KiB +([\d.]+) ", digits.stdout, re.MULTILINE)
    assert row is not None, digits.stdout
    accuracy, of_float = float(row[1]), float(row[3])
    assert accuracy > 90
    # A static int8 model is about a quarter; the dynamic one has int8 weights in its small head only.
    assert of_float < 0.4 or name in ("float", "dynamic (the head)")


def test_digits_prints_the_summary(digits: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r"^head +Linear +QuantizedLinear +quantized ", digits.stdout, re.MULTILINE), (
        digits.stdout
    )


def test_digits_fails_when_accuracy_falls() -> None:
    module = _load("digits")
    results = {"float": {"accuracy": 98.0}, "a": {"accuracy": 97.1}, "b": {"accuracy": 96.9}}
    assert module.fallen(results) == ["b"]


def test_encoder_succeeds() -> None:
    done = _run("encoder.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    sqnr = re.search(r"^SQNR +([\d.]+) dB$", done.stdout, re.MULTILINE)
    assert sqnr is not None and float(sqnr[1]) > 20
    assert {"size", "latency"} <= {line.partition(" ")[0] for line in done.stdout.splitlines()}


def test_on_device_succeeds() -> None:
    done = _run("on_device.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    sizes = re.findall(r"^(float|shipped|finalized|off-device) +\d+ +([\d.]+) ", done.stdout, re.MULTILINE)
    assert [name for name, _ in sizes] == ["float", "shipped", "finalized", "off-device"]
    assert done.stdout.count("equal to quantize_dynamic_jit") == 2


def test_on_device_fails_when_the_device_answers_otherwise(tmp_path: Path) -> None:
    module = _load("on_device")
    x, model = module.torch.randn(4, 3), module.nn.Linear(3, 3)
    module.torch.save(x, tmp_path / "inputs.pt")
    module.torch.save({"right": model(x), "wrong": model(x) + 1}, tmp_path / "answers.pt")
    wrong = module.compare(tmp_path, model, model)
    assert [line.partition(":")[0] for line in wrong] == ["wrong", "wrong"]


def test_on_device_fails_when_the_shipped_file_is_too_large(tmp_path: Path) -> None:
    module = _load("on_device")
    for name, size in (("float", 100), ("shipped", 200), ("finalized", 30), ("off-device", 30)):
        (tmp_path / f"{name}.ptl").write_bytes(bytes(size))
    assert [line.partition(" ")[0] for line in module.report_sizes(tmp_path)] == ["shipped"]


def test_sqnr_in_decibels() -> None:
    module = _load("encoder")
    signal = module.torch.ones(100)
    assert module.sqnr(signal, 1.1 * signal) == pytest.approx(20, abs=1e-3)
