"""Results as text: lines while running, tables for the page."""
from __future__ import annotations
from benchmarks.model import Row

FAILED = ("wrong result", "error")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def amount(value: float, unit: str) -> str:
    """A value with its unit, three digits."""
    if unit != "s":
        return f"{value:.3g} {unit}"
    size, name = next((u for u in UNITS if value >= u[0]), UNITS[-1])
    return f"{value / size:.3g} {name}"


def lines(rows: list[Row]) -> str:
    """The rows of one variant, for the terminal."""
    out = [f"  {rows[0].group}, {rows[0].variant}"] if rows else []
    for row in rows:
        if row.status == "ok":
            low, high = row.quartiles
            spread = f"({amount(low, row.unit)} to {amount(high, row.unit)})"
            noise = "" if row.sqnr is None else f"{row.sqnr:8.1f} dB"
            out.append(f"    {row.contender:<36}{amount(row.median, row.unit):>12} {spread:<26}{noise}")
        else:
            out.append(f"    {row.contender:<36}{'-':>12} {row.status}: {row.note}")
    return "\n".join(out)
