"""Numbers as people read them: seconds in the unit that fits, counts with their nouns."""

from __future__ import annotations

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
DURATION = r"\d[\d.,]*(?:e[+-]?\d+)? (?:s|ms|µs)\b"  # what seconds_text writes, and the reasons of plans


def seconds_text(seconds: float) -> str:
    """Three digits and a unit: 0.0123 --> "12.3 ms"."""
    scale, unit = next(((scale, unit) for scale, unit in UNITS if seconds >= 0.9995 * scale), UNITS[-1])
    return f"{three_digits(seconds / scale)} {unit}"


def ratio_text(ratio: float) -> str:
    """How many times: 12.34 --> "12.3 ×"."""
    return f"{three_digits(ratio)} ×"


def count_of(number: int, noun: str) -> str:
    """A count and its noun: 1 sweep, 2 sweeps."""
    return f"{number} {noun}{'s' * (number != 1)}"


def three_digits(value: float) -> str:
    """12345.6 --> "12346", 123.4 --> "123", 12.34 --> "12.3", 1.234 --> "1.23"."""
    places = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{places}f}"
