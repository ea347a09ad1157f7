"""A contender in a process of its own, for switches that a library reads once, when it is imported.

It takes its turn like any other: the timing happens over there, and only while it is asked for. The process
waits without using a core in between.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.model import Gap, Options

Key = tuple[str, str, str, str]  # case, group, variant, contender


class Remote:
    """A runner whose work is done elsewhere."""

    def __init__(self, environment: tuple[tuple[str, str], ...], key: Key, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, key, options), daemon=True)
        before = {name: os.environ.get(name) for name, _ in environment}
        os.environ.update(environment)
        try:
            self._process.start()
        finally:
            for name, value in before.items():
                _restore(name, value)
        theirs.close()
        try:
            self._receive()  # it is built
        except Exception:
            self.close()
            raise

    def result(self) -> Any:
        """What one call gives, as an array."""
        return self._ask("result")

    def chunk(self) -> float:
        """Seconds per call over there."""
        return self._ask("chunk")

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)

    def _ask(self, question: str) -> Any:
        self._connection.send(question)
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self._process.name} ended") from None
        if kind == "gap":
            raise Gap(value)
        if kind == "error":
            raise RuntimeError(value)
        return value


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _serve(connection: Connection, key: Key, options: Options) -> None:
    """Build the contender of that key and answer until the other side closes."""
    from benchmarks.cases import find
    from benchmarks.checks import as_tensor
    from benchmarks.machine import pin

    warnings.simplefilter("ignore")
    try:
        pin(options.threads)
        variant, contender = find(*key)
        runner = contender.build(variant.make())
        connection.send(("built", None))
        answers = {"result": lambda: as_tensor(runner.result()).numpy(), "chunk": runner.chunk}
        while True:
            connection.send(("answer", answers[connection.recv()]()))
    except EOFError:
        return
    except Gap as gap:
        connection.send(("gap", str(gap)))
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))
