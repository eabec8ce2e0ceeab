"""The suite as data: which pieces an audit consists of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sfumato.audit.schema import Untested
from sfumato.errors import ConfigError

__all__ = ["Piece", "chosen", "load_suite"]

PieceKind = Literal["attack", "queries", "knowledge", "probe"]


@dataclass(frozen=True)
class Piece:
    """One piece of an audit; `suite.yaml` says what the fields mean."""

    name: str
    kind: PieceKind
    attack: str
    share: float
    minutes: float = 0
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


def _piece(line: dict[str, Any]) -> Piece:
    fewest_most = line.pop("epochs", None)
    return Piece(**line | {"needs": tuple(line.get("needs", ()))}, epochs=tuple(fewest_most) if fewest_most else None)
