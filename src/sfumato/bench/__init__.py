"""Speed as ratios to baselines that run in the same process, at the same time, on the same machine."""

import warnings
from collections.abc import Callable
from typing import Any

from sfumato.bench.timing import Ratio, take_turns
from sfumato.bench.training import CONFIG, QUICK, cem_step, feature_pass, random_images, refresh
from sfumato.errors import SfumatoWarning
from sfumato.provenance import evidence

__all__ = ["Ratio", "run_bench", "take_turns"]


def run_bench(*, rounds: int = 15, quick: bool = False, tell: Callable[[Ratio], None] | None = None) -> dict[str, Any]:
    """The training step with CEM and the mixture, each over its baseline.

    Args:
        rounds: how often each variant runs.
        quick: sizes that are small enough for a test, and too small for a statement.
        tell: hears of each row.

    Returns:
        `rows`, `seconds` of the plain training step, and what was measured with.
    """
    rows: list[Ratio] = []

    def add(*new: Ratio) -> None:
        rows.extend(new)
        for row in new:
            if tell is not None:
                tell(row)

    config = QUICK if quick else CONFIG
    images = random_images(100 if quick else 2560)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # what random features are worth does not matter for speed
        steps, seconds = cem_step(rounds, images, config)
        add(*steps)
        add(feature_pass(max(2, rounds // 3), images, config))
        add(refresh(max(2, rounds // 3), seconds, *((1500, 64) if quick else (50_000, 512))))
    return {
        "rows": [row.as_dict() for row in rows],
        "seconds": {"training step": seconds},
        "rounds": rounds,
        "quick": quick,
        "evidence": evidence("cpu"),
    }
