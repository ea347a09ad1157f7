"""The file of results: one entry for each case, with the machine, the command and the rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.model import Row

FORMAT = 1


@dataclass
class Result:
    """What came of a case."""

    case: str
    command: str
    seconds: float
    options: dict[str, Any]
    machine: dict[str, Any]
    rows: list[Row]


def read(path: Path) -> dict[str, Result]:
    """The results by case; none where there is no file."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has format {content.get('format')}, expected {FORMAT}: run the suite again")
    return {
        name: Result(**{**entry, "rows": [Row(**row) for row in entry["rows"]]})
        for name, entry in content["cases"].items()
    }


def write(path: Path, results: dict[str, Result]) -> None:
    """Write the results; one line for each row, so that a later run shows as a readable difference."""
    entries = []
    for name, result in results.items():
        rows = ",\n".join("   " + json.dumps(row.plain(), allow_nan=False) for row in result.rows)
        head = {key: value for key, value in vars(result).items() if key != "rows"}
        body = json.dumps(head, allow_nan=False)[1:-1]
        entries.append(f'  {json.dumps(name)}: {{{body}, "rows": [\n{rows}\n  ]}}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"format": {FORMAT}, "cases": {{\n' + ",\n".join(entries) + "\n}}\n")
