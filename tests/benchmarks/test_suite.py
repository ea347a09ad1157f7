"""The benchmark suite itself, on tiny cases: who takes part, who is refused, what is written.

Figures are made, or only counted: no test depends on how long anything takes.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import __main__ as program, cases, contenders, machine, models, remote, report, results
from benchmarks.checks import as_tensor, sqnr
from benchmarks.contenders import Subject
from benchmarks.interleaved import measure
from benchmarks.libraries import FLOAT, LIBRARIES, installed
from benchmarks.model import Case, Contender, Gap, Options, Row, Target, Variant
from benchmarks.ratios import ratios
from benchmarks.results import Result
from benchmarks.timing import Local, interleave
from tests.house import ROOT
from tests.support import quiet_ao

X = torch.linspace(-1, 1, 8)


def _contender(name: str, run: Callable[[], Any], **options: Any) -> Contender:
    return Contender(name, lambda _: Local(run), **options)


def _gap(_: Any) -> Local:
    raise Gap("it has no LSTM")


def _broken(_: Any) -> Local:
    raise ValueError("no such thing\nand more")


def _variants() -> list[Variant]:
    who = (
        _contender("float", lambda: X),
        _contender("ours", lambda: X + 1e-3),
        _contender("ours, other", lambda: -X),
        _contender("ours, infinite", lambda: X / 0),
        _contender("stranger", lambda: X, needs=("no_such_package",)),
        Contender("peer", _gap),
        Contender("fragile", _broken),
        _contender("slow to build", lambda: X, in_quick=False),
        _contender("yardstick", lambda: None, checked=False),
    )
    return [Variant("tiny", "8 values", lambda: None, who, True), Variant("tiny", "more", lambda: None, who)]


TINY = Case(
    "tiny",
    "A tiny case",
    _variants,
    measure,
    least_sqnr=20,
    reference="float",
    targets=(
        Target("ours", "float", 1e6),
        Target("ours", "float", 1e-6, "tiny / 8 *"),
        Target("nobody", "float", 1),
    ),
)
QUICK = Options(rounds=2, quick=True)


@pytest.fixture
def only_tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A suite of the tiny case alone, whose threads and cores stay as they are."""
    for module in (cases, program, report):
        monkeypatch.setattr(module, "CASES", (TINY,))
    monkeypatch.setattr(program, "pin", lambda threads: None)
    yield


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.contender: row for row in measure(TINY, _variants()[0], QUICK)}


# --- who is measured, and who is not ---


def test_filter_chooses_by_a_part_of_the_name() -> None:
    assert [case.name for case in cases.chosen("dynamic")] == ["dynamic_linear"]
    assert cases.chosen("") == list(cases.CASES)


def test_filter_that_fits_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["nothing_like_it"]) == 2
    assert "no case has 'nothing_like_it'" in capsys.readouterr().out


def test_right_contenders_are_timed(rows: dict[str, Row]) -> None:
    assert [name for name, row in rows.items() if row.status == "ok"] == ["float", "ours", "yardstick"]
    assert [len(rows[name].samples) for name in ("float", "ours", "yardstick")] == [2, 2, 2]
    assert min(rows["ours"].samples) > 0


def test_missing_package_is_said(rows: dict[str, Row]) -> None:
    assert (rows["stranger"].status, rows["stranger"].note) == (
        "not installed",
        "no_such_package: not installed",
    )


def test_gap_is_said(rows: dict[str, Row]) -> None:
    assert (rows["peer"].status, rows["peer"].note) == ("gap", "it has no LSTM")
    assert (rows["slow to build"].status, rows["slow to build"].note) == ("gap", "left out of quick runs")


def test_error_of_a_contender_is_said_in_one_line(rows: dict[str, Row]) -> None:
    assert (rows["fragile"].status, rows["fragile"].note) == ("error", "ValueError: no such thing")


@pytest.mark.parametrize("name", ["ours, other", "ours, infinite"])
def test_wrong_contender_is_refused_and_not_timed(name: str, rows: dict[str, Row]) -> None:
    assert rows[name].status == "wrong result"
    assert rows[name].samples == []
    assert "20 dB are expected" in rows[name].note


def test_yardstick_is_not_checked(rows: dict[str, Row]) -> None:
    assert rows["yardstick"].sqnr is None


def test_sqnr() -> None:
    ones = torch.ones(100, dtype=torch.float64)
    assert sqnr(ones, 1.1 * ones) == pytest.approx(20, abs=0.05)
    assert sqnr(ones, ones) == 999
    assert sqnr(ones, ones * math.nan) == -999
    assert sqnr(ones, torch.ones(99)) == -999


def test_results_of_every_kind_become_tensors() -> None:
    for result in (X, (X, None), [X.numpy()], X.half()):
        assert as_tensor(result).dtype == torch.float64
    assert as_tensor([X.numpy()]).shape == X.shape


def test_rounds_have_one_sample_of_each() -> None:
    calls: list[str] = []

    class Counted:
        """A runner that says who was called."""

        def __init__(self, name: str) -> None:
            self.name = name

        def result(self) -> Any:
            """Nothing."""

        def chunk(self) -> float:
            """Seconds that say which call it was."""
            calls.append(self.name)
            return float(len(calls))

        def close(self) -> None:
            """Nothing to let go of."""

    samples = interleave({name: Counted(name) for name in "abc"}, 4)
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert [sorted(calls[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert len({tuple(calls[i : i + 3]) for i in range(0, 12, 3)}) > 1


# --- what is written ---


def test_quick_run_writes_json_and_a_page(
    only_tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = tmp_path / "new" / "results.json", tmp_path / "page.md"
    assert program.main(["tiny", "--quick", "--json", str(target), "--markdown", str(page)]) == 1
    printed = capsys.readouterr()
    assert "stranger" in printed.out and "not installed" in printed.out
    assert "tiny, 8 values: ours, other: wrong result" in printed.err
    content = json.loads(target.read_text(), parse_constant=pytest.fail)
    entry = content["cases"]["tiny"]
    assert len(entry["rows"]) == len(_variants()[0].contenders)  # the second variant is not quick
    assert {"date", "cpu", "flags", "versions", "commit"} <= set(entry["machine"])
    assert entry["command"].startswith("python -m benchmarks tiny --threads ")
    assert "| *ours / float: at most 1e+06* |" in page.read_text()


def test_page_is_made_again_from_the_file(only_tiny: None, tmp_path: Path) -> None:
    target, page = tmp_path / "results.json", tmp_path / "page.md"
    program.main(["--quick", "--json", str(target), "--markdown", str(page)])
    first = page.read_text()
    page.write_text(first.replace("# Performance", "# Mine") + "\nBy hand.\n")
    assert program.main(["--from", str(target), "--markdown", str(page)]) == 0
    assert page.read_text() == first.replace("# Performance", "# Mine") + "\nBy hand.\n"


def test_other_cases_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write(path, {"old": _result([Row("g", "v", "ours", samples=[1.5])])})
    results.write(path, {**results.read(path), "new": _result([])})
    assert list(results.read(path)) == ["old", "new"]
    assert results.read(path)["old"].rows == [Row("g", "v", "ours", samples=[1.5])]


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"format": 99, "cases": {}}')
    with pytest.raises(ValueError, match="format 99, expected 1"):
        results.read(path)


def test_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="benchmarks:tiny"):
        report.replace("# A page\n", "tiny", "text")


def _result(given: list[Row]) -> Result:
    about = {"cpu": "c", "family": "f", "flags": [], "kernels": "k", "versions": {"torch": "2"}}
    about |= {"commit": "a", "date": "d", "load": 0.0}
    return Result("tiny", "python -m benchmarks tiny", 1.0, {"threads": 2}, about, given)


GIVEN = [
    Row("g", "v", "float", samples=[2.0, 2.0, 2.0]),
    Row("g", "v", "ours", samples=[4e-3, 3e-3, 5e-3], sqnr=41.0),
    Row("g", "v", "peer", "gap", note="it has no LSTM"),
]


def test_section_holds_tables_gaps_and_command(tmp_path: Path) -> None:
    text = report.section(TINY, _result(GIVEN), tmp_path / "page.md")
    assert "```sh\npython -m benchmarks tiny\n```" in text
    assert "| ours | **4 ms** (3 to 4.5) | 41.0 dB |" in text
    assert "- peer (gap): it has no LSTM." in text


def test_variants_down_the_table(tmp_path: Path) -> None:
    turned = Case("tiny", "t", _variants, measure, rows="variants", targets=(Target("float", "ours", 1),))
    text = report.section(turned, _result(GIVEN), tmp_path / "page.md")
    assert "|  | float | ours | float / ours |" in text
    ratio = "500.00 (minima 666.67): **missed** 500.0 times over (1)"
    assert f"| g: v | 2 s (2 to 2) | **4 ms** (3 to 4.5) | {ratio} |" in text


def test_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = report.section(TINY, _result(GIVEN), tmp_path / "page.md")
    assert "](images/benchmark-tiny.svg)" in text
    assert (tmp_path / "images" / "benchmark-tiny.svg").read_text().startswith("<?xml")


def test_without_matplotlib_there_is_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.plots.installed", lambda package: False)
    assert "images/" not in report.section(TINY, _result(GIVEN), tmp_path / "page.md")


@pytest.mark.parametrize(
    "at_most, verdict",
    [
        (2.0, "met"),
        (1.9, "level"),
        (1.5, "**missed** by 33 %"),
        (1.0, "**missed** 2.0 times over"),
        (1.995, "met"),
    ],
)
def test_verdict_of_a_target(at_most: float, verdict: str) -> None:
    given = [
        Row("g", "v", "ours", samples=[1.9, 2.0, 2.0, 1.8, 2.2]),
        Row("g", "v", "peer one", samples=[1.0] * 5),
        Row("g", "v", "peer two", samples=[9.0] * 5),
    ]
    (ratio,) = ratios(given, [Target("ours", "peer *", at_most)])
    assert ratio.verdict == verdict
    assert ratio.of_minima == 1.8


def test_summary_names_the_worst_and_what_was_not_measured() -> None:
    lines = report.summary([(TINY, _result(GIVEN))]).splitlines()
    assert "A tiny case: ours / float: at most 1e+06 | 1 of 1 | 0 | 0.00 | 0.00: g, v |" in lines[2]
    assert "nobody / float: at most 1 | not measured |" in lines[4]


@pytest.mark.parametrize(
    "value, text", [(1.5, "1.5 s"), (2.5e-3, "2.5 ms"), (123.4e-6, "123 µs"), (5e-8, "0.05 µs")]
)
def test_amounts(value: float, text: str) -> None:
    assert report.amount(value, "s") == text


# --- the cases ---


def test_contenders_are_found_again_by_name() -> None:
    for case in cases.CASES:
        variants = case.variants()
        assert len({(v.group, v.name) for v in variants}) == len(variants)
        assert [v for v in variants if v.in_quick], f"{case.name} has nothing for a quick run"
        for variant in variants:
            names = [contender.name for contender in variant.contenders]
            assert len(set(names)) == len(names)
            for contender in variant.contenders[:1]:
                assert (
                    cases.find(case.name, variant.group, variant.name, contender.name)[1].name
                    == contender.name
                )


def test_every_target_names_a_contender_of_its_case() -> None:
    for case in cases.CASES:
        names = {contender.name for variant in case.variants() for contender in variant.contenders}
        assert [t for t in case.targets if names and t.contender not in names] == []


@pytest.mark.parametrize("name", models.CLASSIFIERS)
def test_classifiers_fuse_whole(name: str) -> None:
    q = LIBRARIES["ours"]().q
    model = models.classifier(name, FLOAT)
    x = models.images(0, 1, 64)
    fused = q.fuse_modules(model, model.fusions())
    assert [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)] == []
    with torch.no_grad():
        assert sqnr(as_tensor(model(x)), as_tensor(fused(x))) > 80


def _small(_: Any) -> nn.Module:
    return models.encoder(1, 32, 4, 64)


def _subject() -> Subject:
    return Subject(_small, models.seeded(1, 2, 5, 32))


def _run(contender: Contender, subject: Subject) -> Tensor:
    missing = [package for package in contender.needs if not installed(package)]
    if missing:
        pytest.skip(f"{missing} not installed")
    before = torch.backends.quantized.engine
    try:
        with quiet_ao():
            return as_tensor(contender.build(subject).result())
    except Gap as gap:
        pytest.skip(str(gap))
    finally:
        torch.backends.quantized.engine = before


EAGER = [
    c for c in contenders.dynamic_contenders() if not c.environment and ("ours" in c.name or not c.needs)
]


@pytest.mark.parametrize("contender", EAGER, ids=lambda c: c.name)
def test_contender_computes_the_encoder(contender: Contender) -> None:
    subject = _subject()
    with torch.no_grad():
        expected = as_tensor(subject.float_model(subject.x))
    assert sqnr(expected, _run(contender, subject)) > 20


def test_static_contender_computes_the_network() -> None:
    build = functools.partial(models.classifier, "ResNet-18")
    subject = Subject(build, models.images(1, 1, 64), [models.images(2, 2, 64)])
    chosen = next(c for c in contenders.static_contenders() if c.name == "ours auto")
    with torch.no_grad():
        expected = as_tensor(subject.float_model(subject.x))
    assert sqnr(expected, _run(chosen, subject)) > 12


def test_contender_without_kernels_answers_from_its_own_process() -> None:
    case = next(case for case in cases.CASES if case.name == "observers")
    variant = case.variants()[0]
    key = (case.name, variant.group, variant.name, "ours, no kernels")
    elsewhere = remote.Remote(contenders.NO_NATIVE, key, 1)
    here = next(c for c in variant.contenders if c.name == "ours").build(variant.make())
    assert sqnr(as_tensor(here.result()), as_tensor(elsewhere.result())) == 999
    assert elsewhere.chunk() > 0
    elsewhere.close()
    with pytest.raises(RuntimeError, match="KeyError"):
        elsewhere.result()


def test_conversion_reports_its_steps() -> None:
    conversion = pytest.importorskip("benchmarks.conversion")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    spec = {"library": "ours", "flow": "static", "inplace": False, "layers": 2, "width": 64}
    flow = conversion.Flow({**spec, "engine": torch.backends.quantized.engine})
    with torch.no_grad():
        flow.static()
    assert [step for step, *_ in flow.steps] == ["prepare", "convert"]
    assert all(seconds > 0 and peak >= 0 for _, seconds, peak, _ in flow.steps)
    assert flow.steps[0][3] == 999 and 12 < flow.steps[1][3] < 60


def test_machine_is_described() -> None:
    about = machine.describe()
    assert about["cores"] >= 1
    assert about["versions"]["torch"] == torch.__version__
    assert set(about["flags"]) <= set(machine.FLAGS)


# --- the page of this repository ---

PAGE = ROOT / "docs" / "performance.md"


def test_page_has_a_place_for_every_case() -> None:
    marks = re.findall(r"^<!-- benchmarks:(\w+) -->$", PAGE.read_text(), re.MULTILINE)
    assert sorted(marks) == sorted([report.SUMMARY, *(case.name for case in cases.CASES)])


def test_page_agrees_with_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.plots.installed", lambda package: False)
    found = results.read(PAGE.with_suffix(".json"))
    assert set(found) == {case.name for case in cases.CASES}
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text())
    report.write(copy, found)
    without_plots = re.sub(r"\n!\[[^\n]*\]\(images/benchmark-[^\n]*\)\n", "", PAGE.read_text())
    assert copy.read_text() == without_plots
