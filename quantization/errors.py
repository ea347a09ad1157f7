"""Errors with the module's path, and warnings that `strict` turns into errors."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator

from observers.errors import (
    FamiliarError as FamiliarError,
    InvalidRequest as InvalidRequest,
    QuantizationError as QuantizationError,
    QuantizationWarning as QuantizationWarning,
    Unsupported as Unsupported,
)


@contextlib.contextmanager
def at(path: str, doing: str) -> Generator[None]:
    """Name the module in any error raised inside: "while converting 'layer1.0.conv1': ...".

    The type of a foreign error is kept, because callers may catch it; it carries the place as a note.
    """
    try:
        yield
    except Exception as error:
        name_place(error, path, doing)
        raise


def name_place(error: Exception, path: str, doing: str) -> None:
    """Write the module's path into an error, unless a call further inside has."""
    if isinstance(error, QuantizationError):
        if error.path:
            return
        error.path, error.doing = path or "<root>", doing
        if isinstance(error, FamiliarError):
            _note(error, path, doing)
    elif not hasattr(error, "_noted"):
        _note(error, path, doing)
        error._noted = True  # pyright: ignore[reportAttributeAccessIssue]


def _note(error: Exception, path: str, doing: str) -> None:
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(f"while {doing} '{path or '<root>'}'")  # pyright: ignore[reportAttributeAccessIssue]


def notify(message: str, strict: bool, stacklevel: int = 3) -> None:
    """Warn with our own category, or raise a `QuantizationError` with the same text when `strict`."""
    if strict:
        raise QuantizationError(message)
    warnings.warn(message, QuantizationWarning, stacklevel=stacklevel)
