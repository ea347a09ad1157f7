"""Measure in fresh processes: what a process did before would show in its memory and its imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.machine import ROOT

LONGEST = 600  # seconds


def answer(arguments: Sequence[str], environment: Sequence[tuple[str, str]] = ()) -> Any:
    """What `python ARGUMENTS` prints in its last line, from JSON; raises with its last words if it fails."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **dict(environment)}
    done = subprocess.run(
        [sys.executable, *arguments], env=surroundings, capture_output=True, text=True, timeout=LONGEST
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(last)
    return json.loads(done.stdout.strip().splitlines()[-1])
