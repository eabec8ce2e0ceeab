"""Averages over seeds, and how their numbers are written."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

TINY = 1e-9
"""What is smaller is written with a power of ten: zeros alone say nothing."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Mean:
    """A mean over `count` repetitions with their sample standard deviation; a single value has none."""

    mean: float
    sd: float | None
    count: int


def average(values: Iterable[float | None]) -> Mean | None:
    """The mean of what was measured; None if nothing was."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    return Mean(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


def group(rows: Sequence[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows that agree in the fields `names`, in the order in which they first appear."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def error_text(value: float, like: float | None = None) -> str:
    """A mean squared error with four decimals, or three significant digits where four decimals would hide it.

    `like` decides the decimals in place of `value`, so that a spread is written like its mean.

    Below a billionth there is a power of ten instead.

    >>> error_text(0.0240049), error_text(0.000123456), error_text(4.2e-17)
    ('0.0240', '0.000123', '4.2·10⁻¹⁷')
    """
    measure = abs(value if like is None else like)
    if 0 < measure < TINY:
        return number_text(value)
    decimals = 2 - math.floor(math.log10(measure)) if 0 < measure < 1e-3 else 4
    return f"{value:.{decimals}f}"


def number_text(value: float) -> str:
    """Three significant digits, with a power of ten where there would be an e."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else mantissa


def percent_text(value: float) -> str:
    """A share in per cent with one decimal, without the sign for per cent."""
    return f"{100 * value:.1f}"
