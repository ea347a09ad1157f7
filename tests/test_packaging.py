"""What is installed, what is pinned, and which commands the papers around the code promise."""

from __future__ import annotations

import re
import sys

import pytest
from setuptools import find_packages

from tests.house import MODULES, PACKAGES, ROOT

if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
else:
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=! ]", requirement)[0].lower()


def _pins() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.partition("==")[0].lower() for line in lines if "==" in line}


def test_every_package_on_disk_is_installed_and_nothing_else() -> None:
    folders = {path.parent for path in MODULES.values()}
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]
    assert found["namespaces"] is False  # so a folder without __init__.py would be left out
    assert set(find_packages(str(ROOT), include=found["include"])) == on_disk


def test_every_root_package_is_typed() -> None:
    assert [p for p in PACKAGES if not (ROOT / p / "py.typed").exists()] == []


def test_every_direct_dependency_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = {_distribution(r) for group in (PROJECT["project"]["dependencies"], *extras) for r in group}
    assert wanted <= _pins()


def test_pins_are_exact() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#") and "==" not in line] == []


@pytest.mark.parametrize(
    "extra, program",
    [
        ("examples", "python examples/digits.py"),
        ("test", "python -m pytest"),
        ("bench", "python -m benchmarks --quick"),
    ],
)
def test_ci_runs_the_commands_of_the_readme(extra: str, program: str) -> None:
    command = f'pip install -c constraints.txt -e ".[{extra}]" && {program}'
    assert f"\n{command}\n" in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()


def test_pre_commit_and_ci_run_the_same_checks() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    hooks = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    commands = [hook.replace(" --force-exclude", "") for hook in hooks]
    assert commands
    assert [c for c in commands if not re.search(rf"^run '{re.escape(c)}( \.)?'$", ci, re.MULTILINE)] == []
