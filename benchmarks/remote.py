"""Contenders in a process of their own, for switches that a library reads once, when it is imported.

They take their turns like any other: the timing happens over there, and only while it is asked for. In
between the process waits without using a core. One process serves all contenders of an environment.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.model import Gap
from benchmarks.timing import Runner

Environment = tuple[tuple[str, str], ...]
Key = tuple[str, str, str, str]  # case, group, variant, contender


class Remote:
    """A runner whose work is done elsewhere; it is built when it is made."""

    def __init__(self, environment: Environment, key: Key, threads: int) -> None:
        self._ask = functools.partial(_ask, _server(environment, threads), key)
        self._ask("build")

    def result(self) -> Any:
        """What one call gives, as an array."""
        return self._ask("result")

    def chunk(self) -> float:
        """Seconds per call over there."""
        return self._ask("chunk")

    def close(self) -> None:
        """Let go of the model over there."""
        self._ask("close")


@functools.cache
def _server(environment: Environment, threads: int) -> Connection:
    """The connection to a process with these variables; it ends with this one."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
    with _variables(environment):
        process.start()
    theirs.close()
    return mine


@contextmanager
def _variables(environment: Environment) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ask(connection: Connection, key: Key, question: str) -> Any:
    try:
        connection.send((key, question))
        kind, value = connection.recv()
    except (EOFError, OSError):
        raise RuntimeError(f"the process of {key[-1]} ended") from None
    if kind == "gap":
        raise Gap(value)
    if kind == "error":
        raise RuntimeError(value)
    return value


def _serve(connection: Connection, threads: int) -> None:
    """Build contenders and answer for them until the other side closes."""
    importlib.import_module("benchmarks.machine").pin(threads)
    warnings.simplefilter("ignore")
    runners: dict[Key, Runner] = {}
    while True:
        try:
            key, question = connection.recv()
        except EOFError:
            return
        try:
            answer = ("answer", _ANSWERS[question](runners, key))
        except Gap as gap:
            answer = ("gap", str(gap))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        connection.send(answer)


def _build(runners: dict[Key, Runner], key: Key) -> None:
    variant, contender = importlib.import_module("benchmarks.cases").find(*key)
    runners[key] = contender.build(variant.make())


def _result(runners: dict[Key, Runner], key: Key) -> Any:
    return importlib.import_module("benchmarks.checks").as_tensor(runners[key].result()).numpy()


_ANSWERS: dict[str, Callable[[dict[Key, Runner], Key], Any]] = {
    "build": _build,
    "result": _result,
    "chunk": lambda runners, key: runners[key].chunk(),
    "close": lambda runners, key: runners.pop(key).close(),
}
