"""Run a program as it is on this library: `python -m quantization.compat script.py ...`, or `-m module`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from quantization.compat.alias import alias_torch_ao

_USAGE = "usage: python -m quantization.compat (script.py | -m module) [arguments]"


def main(arguments: list[str]) -> None:
    """Put the alias in place, then run the script or module as `python` itself would."""
    module = arguments[:1] == ["-m"]
    program = arguments[1:] if module else arguments
    if not program or program[0].startswith("-"):
        raise SystemExit(_USAGE)
    alias_torch_ao()
    sys.argv[:] = program
    if module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    elif Path(program[0]).exists():
        sys.path[0] = str(Path(program[0]).resolve().parent)
        runpy.run_path(program[0], run_name="__main__")
    else:
        raise SystemExit(f"{_USAGE}\nthere is no file {program[0]!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
