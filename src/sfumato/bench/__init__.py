"""Speed as ratios to baselines that run in the same process, at the same time, on the same machine."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from sfumato.bench.timing import Ratio, as_result, take_turns
from sfumato.bench.training import CONFIG, QUICK, cem_step, feature_pass, random_images, refresh
from sfumato.errors import SfumatoWarning

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
    config, images = QUICK if quick else CONFIG, random_images(100 if quick else 2560)
    seconds: dict[str, float] = {}

    def measured() -> Iterator[Ratio]:
        steps, seconds["training step"] = cem_step(rounds, images, config)
        yield from steps
        few = max(2, rounds // 3)
        yield feature_pass(few, images, config)
        yield refresh(few, seconds["training step"], *((1500, 64) if quick else (50_000, 512)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # what random features are worth does not matter for speed
        return as_result(measured(), tell, rounds=rounds, quick=quick) | {"seconds": seconds}
