"""README.md and the pages of docs/: the Python of each page runs, top to bottom, as one program.

A page runs in a process of its own under `-W error`, as a reader's script would, so it may switch engines or
put names into `sys.modules`. Blocks that are not marked `python` (shell, output, sketches) are left alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def program(page: str) -> str:
    """The Python blocks of a page, each on the lines it has there, so that tracebacks point into the page."""
    lines = [""] * (page.count("\n") + 1)
    for block in BLOCK.finditer(page):
        first = page.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines) if any(lines) else ""


def run(source: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, on this checkout, with warnings as errors."""
    launcher = "import sys; n, s = sys.argv[1:]; exec(compile(s, n, 'exec'), {'__name__': '__main__'})"
    command = [sys.executable, "-W", "error", "-c", launcher, name, source]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


RUNNING = {str(page.relative_to(ROOT)): program(page.read_text()) for page in PAGES}
RUNNING = {name: source for name, source in RUNNING.items() if source}


@pytest.mark.parametrize("name", RUNNING)
def test_page_runs(name: str, tmp_path: Path) -> None:
    done = run(RUNNING[name], name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_is_closed_and_marked(page: Path) -> None:
    fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
    assert fences[1::2] == ["```"] * (len(fences) // 2)
    assert len(fences) % 2 == 0
    assert {f.removeprefix("```") for f in fences[::2]} <= {"python", "text", "sh", "toml"}


# --- the runner itself ---

PAGE = "# A page\n\n```python\nimport sys\nx = 1\n```\n\nThen\n\n```text\nother\n```\n\n```python\n{}\n```\n"


def test_program_joins_the_blocks_on_their_lines() -> None:
    assert program(PAGE.format("x += 1")).splitlines()[3:15] == [
        "import sys",
        "x = 1",
        *[""] * 9,
        "x += 1",
    ]


def test_program_of_a_page_without_python_is_empty() -> None:
    assert program("# A page\n\n```text\n1\n```\n") == ""


@pytest.mark.parametrize(
    "last, said",
    [
        ("assert x == 2", 'File "page.md", line 15'),
        ("import warnings; warnings.warn('old')", "UserWarning: old"),
    ],
)
def test_a_failing_page_is_noticed(last: str, said: str, tmp_path: Path) -> None:
    done = run(program(PAGE.format(last)), "page.md", tmp_path)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_good_page_passes(tmp_path: Path) -> None:
    assert run(program(PAGE.format("sys.exit(x - 1)")), "page.md", tmp_path).returncode == 0
