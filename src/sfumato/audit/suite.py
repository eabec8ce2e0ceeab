"""The suite as data: which pieces an audit consists of, and which of them this subject and this budget allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sfumato.audit.schema import Untested
from sfumato.errors import ConfigError

__all__ = ["Piece", "affordable", "chosen", "load_suite", "runnable", "too_little"]

PieceKind = Literal["attack", "queries", "knowledge", "probe"]


@dataclass(frozen=True)
class Piece:
    """One piece of an audit; `suite.yaml` says what the fields mean."""

    name: str
    kind: PieceKind
    attack: str
    share: float
    rank: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: tuple[int, int] | None = None
    steps: int | None = None
    images: int | None = None
    needs: tuple[str, ...] = ()


@cache
def load_suite() -> tuple[Piece, ...]:
    """The pieces of `suite.yaml`.

    Raises:
        ConfigError: two pieces have one name.
    """
    import yaml

    lines = yaml.safe_load((Path(__file__).parent / "suite.yaml").read_text(encoding="utf-8"))
    pieces = tuple(_piece(line) for line in lines)
    names = [piece.name for piece in pieces]
    if len(set(names)) < len(names):
        raise ConfigError("two pieces of the suite have one name")
    return pieces


def chosen(
    pieces: Sequence[Piece], only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[list[Piece], list[Untested]]:
    """The pieces that were asked for: those of `only`, all if it is empty, without those of `skip`.

    Raises:
        ConfigError: a name is none of the suite's, or no piece is left.

    >>> kept, dropped = chosen(load_suite(), only=["ridge", "nearest"])
    >>> [piece.name for piece in kept], len(dropped) > 10
    (['ridge', 'nearest'], True)
    """
    names = [piece.name for piece in pieces]
    if unknown := sorted({*only, *skip} - set(names)):
        raise ConfigError(f"there is no piece {unknown[0]!r}; the pieces of an audit are {', '.join(names)}")
    kept = [piece for piece in pieces if (not only or piece.name in only) and piece.name not in skip]
    if not kept:
        raise ConfigError("--only and --skip leave nothing of the audit; name fewer pieces in --skip")
    words = {name: "left out by --skip" if name in skip else "left out by --only" for name in names}
    dropped = [Untested(piece.name, words[piece.name], left_out=True) for piece in pieces if piece not in kept]
    return kept, dropped


def runnable(pieces: Sequence[Piece], *, has: Mapping[str, str | None]) -> tuple[list[Piece], list[Untested]]:
    """Those that the subject allows."""
    kept: list[Piece] = []
    dropped: list[Untested] = []
    for piece in pieces:
        lacking = [reason for need in piece.needs if (reason := has[need]) is not None]
        if lacking:
            dropped.append(Untested(piece.name, lacking[0]))
        else:
            kept.append(piece)
    return kept, dropped


def affordable(
    pieces: Sequence[Piece], seconds: float, fewest_seconds: Mapping[str, float]
) -> tuple[list[Piece], list[Untested]]:
    """Those for which there is time: pieces are left out, highest rank first, until all others get their fewest epochs.

    A piece that would fit gives way too, if one of a lower rank does not fit.
    """
    kept = list(pieces)
    dropped: list[Untested] = []
    while True:
        total = sum(piece.share for piece in kept)
        short = [
            piece
            for piece in kept
            if piece.rank > 0
            and piece.name in fewest_seconds
            and fewest_seconds[piece.name] > seconds * piece.share / total
        ]
        if not short:
            return kept, dropped
        last = max(kept, key=lambda piece: piece.rank)
        kept.remove(last)
        why = "too little time: it gives way to better ranked attacks"
        if last.name in fewest_seconds:
            why = too_little(max(fewest_seconds[last.name] * total / last.share, seconds))
        dropped.append(Untested(last.name, why, left_out=True))


def too_little(seconds: float) -> str:
    """Why a piece is left out that needs an audit of so many seconds."""
    return f"too little time: give about --minutes {_rounded(seconds / 60) + 1} or more"


def _piece(line: dict[str, Any]) -> Piece:
    fewest_most = line.pop("epochs", None)
    return Piece(**line | {"needs": tuple(line.get("needs", ()))}, epochs=tuple(fewest_most) if fewest_most else None)


def _rounded(minutes: float) -> int:
    """Rounded down to two digits."""
    unit = 10 ** max(0, len(str(int(minutes))) - 2)
    return int(minutes // unit * unit)
