"""The errors and the warning category of the whole library.

They live in the lowest package so that observers can raise them; users find them at `quantization.errors`.
Every error is a `QuantizationError`, and therefore a `ValueError`. Where callers of torch.ao catch another
builtin type, the class raised is a subclass of both.
"""

from __future__ import annotations


class QuantizationError(ValueError):
    """Something about a quantization request is wrong: what came, what was expected, what to do.

    `path` is the dotted name of the module concerned ('' when there is none), filled in by the workflows.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.doing = ""

    def __str__(self) -> str:
        message = super().__str__()
        where = f"while {self.doing} '{self.path}': " if self.path else ""
        return where + message


class InvalidRequest(QuantizationError, AssertionError):
    """A wrong argument or a model in the wrong state, where torch.ao used an assertion."""


class FamiliarError(InvalidRequest):
    """Carries torch.ao's very text, which programs compare; the place and the cure are notes (PEP 678)."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self._note(cure)

    def _note(self, text: str) -> None:
        if hasattr(self, "add_note"):  # Python 3.11
            self.add_note(text)

    def __str__(self) -> str:
        return ValueError.__str__(self)


class Unsupported(QuantizationError, NotImplementedError):
    """A combination that has no implementation."""


class QuantizationWarning(UserWarning):
    """The one warning category of this library; `strict=True` turns these warnings into errors."""
