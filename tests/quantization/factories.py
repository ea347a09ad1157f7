"""Observer factories spelled out as plain data, so that ours and torch.ao's can be compared."""

from __future__ import annotations

from typing import Any


def spell(factory: Any) -> Any:
    """The class name and the arguments of a factory, all the way down."""
    partial = getattr(factory, "p", None)
    if partial is None:
        return getattr(factory, "__name__", factory)
    keywords = {key: spell(value) if callable(value) else value for key, value in partial.keywords.items()}
    return spell(partial.func), partial.args, keywords


def spell_qconfig(qconfig: Any) -> Any:
    """The same for the pair of factories of a qconfig."""
    return None if qconfig is None else (spell(qconfig.activation), spell(qconfig.weight))
