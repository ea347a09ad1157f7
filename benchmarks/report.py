"""Results as text: lines while running, and the tables of a page, between marks that a later run finds again.

<!-- benchmarks:dynamic_linear -->
...
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.cases import CASES
from benchmarks.model import Case, Row
from benchmarks.ratios import Place, Ratio, describe, fastest, other, places, ratios
from benchmarks.results import Result

FAILED = ("wrong result", "error")
SUMMARY = "summary"
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def amount(value: float, unit: str) -> str:
    """A value of three digits with its unit; seconds are scaled."""
    if unit != "s":
        return f"{value:.3g}"
    size, name = next((u for u in UNITS if value >= u[0]), UNITS[-1])
    return f"{digits(value / size)} {name}"


def digits(value: float) -> str:
    """Three significant digits, never with an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def lines(rows: Sequence[Row]) -> str:
    """The rows of one variant or more, for the terminal."""
    out = []
    for (group, variant), there in places(rows).items():
        out.append(f"  {group}, {variant}" + (f", {there[0].unit}" if there[0].unit != "s" else ""))
        out += [_line(row) for row in there]
    return "\n".join(out)


def _line(row: Row) -> str:
    if row.status != "ok":
        return f"    {row.contender:<32}{'-':>12}  {row.status}: {row.note}"
    low, high = row.spread
    spread = f"({amount(low, row.unit)} to {amount(high, row.unit)})"
    noise = "" if row.sqnr is None else f"{_decibels(row.sqnr):>9}"
    return f"    {row.contender:<32}{amount(row.median, row.unit):>12}  {spread:<24}{noise}"


def _decibels(value: float) -> str:
    return "equal" if value >= 999 else f"{value:.1f} dB"


# --- the page ---


def write(path: Path, found: Mapping[str, Result]) -> None:
    """Put the tables of these results into a page, and their plots into `images/` beside it.

    A page that does not exist is made; in one that does, the text between the marks of each case is replaced.
    """
    cases = [case for case in CASES if case.name in found]
    sections = {case.name: section(case, found[case.name], path) for case in cases}
    sections[SUMMARY] = summary([(case, found[case.name]) for case in cases])
    if path.exists():
        text = path.read_text()
    else:
        parts = [f"## {case.title}\n\n{_mark(case.name)}\n{_END}\n" for case in cases]
        text = f"# Performance\n\n{_mark(SUMMARY)}\n{_END}\n\n" + "\n".join(parts)
    for name, body in sections.items():
        text = replace(text, name, body)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


_END = "<!-- end -->"


def _mark(name: str) -> str:
    return f"<!-- benchmarks:{name} -->"


def replace(text: str, name: str, body: str) -> str:
    """The text with `body` between the marks of that name; raises if it has no such marks."""
    pattern = re.compile(rf"{re.escape(_mark(name))}\n.*?{re.escape(_END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"expected '{_mark(name)}' with '{_END}' below it, once; add both lines to the page")
    return pattern.sub(lambda _: f"{_mark(name)}\n\n{body.strip()}\n\n{_END}", text)


def section(case: Case, result: Result, path: Path) -> str:
    """What the page says about a case: how it was measured, tables, what was left out, the plot."""
    rows = result.rows
    targets = list(ratios(rows, case.targets))
    tables = _by_variant(rows, targets) if case.rows == "variants" else _by_contender(rows, targets)
    parts = [provenance(result), *tables, left_out(rows)]
    image = plots.draw(case, rows, path.parent / "images" / f"benchmark-{case.name}.svg")
    if image:
        parts.append(f"![{case.title}: time beside its peers](images/{image.name})")
    return "\n\n".join(part for part in parts if part)


def provenance(result: Result) -> str:
    """The command, the machine, the versions and the date."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    flags = ", ".join(machine["flags"]) or "none of the flags looked for"
    return (
        f"```sh\n{result.command}\n```\n\n"
        f"{machine['cpu']} ({machine['family']}; {flags}), "
        f"{result.options['threads']} threads, load before the run {machine['load']}, "
        f"kernels for {machine['kernels']}; {versions}; "
        f"commit {machine['commit']}, {machine['date']}, {result.seconds:.0f} s."
    )


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A markdown table, first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def _by_contender(rows: Sequence[Row], targets: Sequence[Ratio]) -> list[str]:
    """A table for each group: contenders down, variants across, then the ratios that have a target."""
    out = []
    for group in dict.fromkeys(row.group for row in rows):
        there = [row for row in rows if row.group == group]
        variants = list(dict.fromkeys(row.variant for row in there))
        contenders = [name for name in dict.fromkeys(r.contender for r in there) if _ran(there, name)]
        cells = {(row.contender, row.variant): _cell(row, there) for row in there}
        body = [
            [name, *(cells.get((name, v), "") for v in variants), _least_sqnr(there, name)]
            for name in contenders
        ]
        for target in dict.fromkeys(ratio.target for ratio in targets):
            found = {
                r.place[1]: _ratio_cell(r) for r in targets if r.target == target and r.place[0] == group
            }
            if found:
                body.append([f"*{describe(target)}*", *(found.get(v, "") for v in variants), ""])
        if body:
            header = [group, *(f"{v}{_unit(there, v)}" for v in variants), "least SQNR"]
            if not any(line[-1] for line in body):
                header, body = header[:-1], [line[:-1] for line in body]
            out.append(table(header, body))
    return out


def _by_variant(rows: Sequence[Row], targets: Sequence[Ratio]) -> list[str]:
    """One table: variants down, contenders across, then the ratios that have a target."""
    contenders = [name for name in dict.fromkeys(row.contender for row in rows) if _ran(rows, name)]
    columns = list(dict.fromkeys((r.target.contender, other(r.target)) for r in targets))
    body = []
    for place, there in places(rows).items():
        cells = {row.contender: _cell(row, there) for row in there}
        shown = {
            (r.target.contender, other(r.target)): f"{_ratio_cell(r)} ({r.target.at_most:.3g})"
            for r in targets
            if r.place == place
        }
        line = [f"{place[0]}: {place[1]}", *(cells.get(name, "") for name in contenders)]
        body.append([*line, *(shown.get(column, "") for column in columns)])
    return [table(["", *contenders, *(f"{a} / {b}" for a, b in columns)], body)] if body else []


def _ran(rows: Sequence[Row], contender: str) -> bool:
    return any(row.contender == contender and row.status == "ok" for row in rows)


def _cell(row: Row, beside: Sequence[Row]) -> str:
    """Median, minimum and third quartile; bold where the median is the least of its variant."""
    if row.status != "ok":
        return f"({row.status})"
    best = fastest([other for other in beside if other.variant == row.variant], "*")
    text = amount(row.median, row.unit)
    text = f"**{text}**" if best is row else text
    size = next((size for size, _ in UNITS if row.median >= size), 1e-6) if row.unit == "s" else 1.0
    low, high = (digits(value / size) for value in row.spread)
    return text if len(row.samples) == 1 else f"{text} ({low} to {high})"


def _ratio_cell(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} (minima {ratio.of_minima:.2f}): {ratio.verdict}"


def _unit(rows: Sequence[Row], variant: str) -> str:
    unit = next(row.unit for row in rows if row.variant == variant)
    return "" if unit == "s" else f", {unit}"


def _least_sqnr(rows: Sequence[Row], contender: str) -> str:
    found = [row.sqnr for row in rows if row.contender == contender and row.sqnr is not None]
    return _decibels(min(found)) if found else ""


def left_out(rows: Sequence[Row]) -> str:
    """Who did not run, where and why: one line for each contender and reason."""
    reasons: dict[tuple[str, str, str], list[Place]] = {}
    for row in rows:
        if row.status != "ok":
            reasons.setdefault((row.contender, row.status, row.note), []).append((row.group, row.variant))
    everywhere = len(places(rows))
    found = [
        f"- {contender} ({status}{_where(where, everywhere)}): {note}."
        for (contender, status, note), where in reasons.items()
    ]
    return "Left out:\n\n" + "\n".join(found) if found else ""


def _where(where: Sequence[Place], everywhere: int) -> str:
    return "" if len(where) == everywhere else "; " + ", ".join(" ".join(place) for place in where)


def summary(found: Sequence[tuple[Case, Result]]) -> str:
    """One line for each target: in how many variants it is met, and the worst of them."""
    body = [line for case, result in found for line in _summary_lines(case, result.rows)]
    return table(["target", "met", "level", "median", "worst"], body)


def _summary_lines(case: Case, rows: Sequence[Row]) -> Iterator[list[str]]:
    for target in case.targets:
        where = "" if target.where == "*" else f" (`{target.where}`)"
        all_ = list(ratios(rows, [target]))
        if not all_:
            yield [f"{case.title}: {describe(target)}{where}", "not measured", "", "", ""]
            continue
        worst = max(all_, key=lambda ratio: ratio.median)
        middle = sorted(ratio.median for ratio in all_)[len(all_) // 2]
        met = sum(ratio.met for ratio in all_)
        yield [
            f"{case.title}: {describe(target)}{where}",
            f"{met} of {len(all_)}",
            str(sum(ratio.verdict == "level" for ratio in all_)),
            f"{middle:.2f}",
            f"{worst.median:.2f}: {', '.join(worst.place)}",
        ]
