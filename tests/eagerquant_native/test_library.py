"""The compiled library: found, chosen by level, refused when it is another one, and never required."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from eagerquant_native import LEVELS, kernel, levels, library
from tests.house import ROOT

needs_library = pytest.mark.skipif(not levels(), reason="the compiled library was not built or is turned off")


@needs_library
def test_levels_go_from_any_cpu_up() -> None:
    assert levels()[0] == "portable"
    assert list(levels()) == [level for level in LEVELS if level in levels()]


@needs_library
def test_a_kernel_is_the_best_level_or_the_one_asked_for() -> None:
    best = [level for level in levels() if kernel("range", level)][-1]
    assert kernel("range").__name__ == f"eq_range_{best}"
    assert kernel("range", "portable").__name__ == "eq_range_portable"
    assert kernel("range", "no such level") is None


@needs_library
def test_every_signature_is_that_of_a_function() -> None:
    compiled = library._library()
    lost = [
        name
        for name in library.SIGNATURES
        if not any(hasattr(compiled, f"eq_{name}_{level}") for level in LEVELS)
    ]
    assert lost == []


def test_every_source_is_compiled() -> None:
    text = (ROOT / "setup.py").read_text()
    sources = {path.stem for path in (ROOT / "eagerquant_native/src").glob("*.cpp")}
    assert {
        name for name in sources if f'    "{name}": (' not in text and f'    "{name}": ANY' not in text
    } == set()


@needs_library
def test_the_library_shares_torchs_threads() -> None:
    assert set(_openmp_libraries()) == {p for p in _openmp_libraries() if "torch" in p}


def _openmp_libraries() -> list[str]:
    with open("/proc/self/maps") as maps:
        return [line.split()[-1] for line in maps if "omp" in line.rpartition("/")[2]]


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_a_library_that_cannot_be_loaded_is_named(
    content: bytes, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_kernels.so"  # type: ignore[operator]
    path.write_bytes(content)
    monkeypatch.setattr(library, "_PATH", path)
    monkeypatch.delenv("EAGERQUANT_NATIVE", raising=False)
    with pytest.warns(
        RuntimeWarning, match="runs without its compiled kernels: .*_kernels.so cannot be used"
    ):
        assert library._library.__wrapped__() is None


@needs_library
def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "INTERFACE", -1)
    with pytest.warns(RuntimeWarning, match="built from other sources"):
        assert library._library.__wrapped__() is None


def test_no_library_is_no_warning(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_PATH", tmp_path / "absent.so")  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library._library.__wrapped__() is None


def test_it_can_be_turned_off() -> None:
    program = "from eagerquant_native import kernel, levels; print(levels(), kernel('range'))"
    environment = {**os.environ, "EAGERQUANT_NATIVE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["()", "None"]


class _Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("tensor", "plain"),
    [
        (torch.ones(2), True),
        (torch.nn.Parameter(torch.ones(2)), True),
        (torch.ones(2, device="meta"), False),
        (torch.ones(2).to_sparse(), False),
        (torch.ones(2).as_subclass(_Subclass), False),
    ],
    ids=["tensor", "parameter", "meta", "sparse", "subclass"],
)
def test_only_plain_tensors_are_read_by_address(tensor: torch.Tensor, plain: bool) -> None:
    assert library.is_plain(tensor) is plain
