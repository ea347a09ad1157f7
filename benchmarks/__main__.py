"""Measure speed and memory beside the library's peers.

python -m benchmarks                      # everything
python -m benchmarks dynamic_linear       # the cases whose name has that in it
python -m benchmarks --quick              # a short run, to see that all of it works
python -m benchmarks --json results.json --markdown page.md
python -m benchmarks --from results.json --markdown page.md     # no run, the page alone
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report, results
from benchmarks.cases import CASES, chosen
from benchmarks.machine import cores, describe, pin
from benchmarks.model import Case, Options, Row
from benchmarks.results import Result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="cases: " + ", ".join(case.name for case in CASES),
    )
    made.add_argument("filter", nargs="?", default="", help="run the cases whose name has this in it")
    made.add_argument("--quick", action="store_true", help="fewer shapes and rounds, for a smoke test")
    made.add_argument("--rounds", type=int, help="rounds of each contender (default: 15, quick: 2)")
    made.add_argument("--threads", type=int, default=len(cores()), help="threads and cores of everyone")
    made.add_argument("--json", type=Path, metavar="PATH", help="keep results there, replacing these cases'")
    made.add_argument("--from", type=Path, metavar="PATH", dest="source", help="run nothing, report these")
    made.add_argument("--markdown", type=Path, metavar="PATH", help="write tables there, and plots beside it")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and report; 1 where this library gave a wrong result or failed."""
    given = parser().parse_args(arguments)
    cases = chosen(given.filter)
    if not cases:
        print(f"no case has '{given.filter}' in its name; there are {', '.join(c.name for c in CASES)}")
        return 2
    if given.source:
        found = {name: r for name, r in results.read(given.source).items() if name in [c.name for c in cases]}
    else:
        options = Options(given.rounds or (2 if given.quick else 15), given.threads, given.quick)
        pin(options.threads)
        machine = describe()  # before the run, whose own load is not meant
        if (machine["load"] or 0) > 0.5:
            print(f"others use this machine (load {machine['load']}): expect noise, the minima suffer least")
        found = {case.name: _run(case, options, machine, given.json) for case in cases}
    if given.markdown:
        report.write(given.markdown, found)
    failed = [row for result in found.values() for row in result.rows if _failed(row)]
    for row in failed:
        print(f"{row.group}, {row.variant}: {row.contender}: {row.status}, {row.note}", file=sys.stderr)
    return 1 if failed and not given.source else 0


def _failed(row: Row) -> bool:
    """Whether it is ours to mend."""
    return row.status in report.FAILED and "ours" in row.contender


def _run(case: Case, options: Options, machine: dict[str, Any], path: Path | None) -> Result:
    """Measure a case, print it as it comes, and keep it."""
    print(f"\n{case.title}: {command(case, options)}", flush=True)
    start, rows = time.perf_counter(), []
    for variant in case.variants():
        if options.quick and not variant.in_quick:
            continue
        done = list(case.measure(case, variant, options))
        print(report.lines(done), flush=True)
        rows += [Row(**row.plain()) for row in done]  # as a report from the file has them
    seconds = round(time.perf_counter() - start, 1)
    print(f"  {seconds} s in all", flush=True)
    result = Result(case.name, command(case, options), seconds, dataclasses.asdict(options), machine, rows)
    if path:
        results.write(path, {**results.read(path), case.name: result})
    return result


def command(case: Case, options: Options) -> str:
    """What to type for the same figures."""
    extra = " --quick" if options.quick else f" --rounds {options.rounds}"
    return f"python -m benchmarks {case.name} --threads {options.threads}{extra}"


if __name__ == "__main__":
    sys.exit(main())
