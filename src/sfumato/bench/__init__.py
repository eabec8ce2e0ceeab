"""Speed as ratios to baselines that run in the same process, at the same time, on the same machine."""

from collections.abc import Callable
from typing import Any

from sfumato.bench.attack import attack_step
from sfumato.bench.mixture import em_against_scikit_learn, refresh, refresh_memory, require_scikit_learn
from sfumato.bench.rows import Row
from sfumato.bench.step import cem_step, random_images, throughput
from sfumato.bench.timing import Timing, take_turns
from sfumato.evidence import evidence

__all__ = ["Row", "Timing", "run_bench", "take_turns"]


def run_bench(*, rounds: int = 15, quick: bool = False, tell: Callable[[Row], None] | None = None) -> dict[str, Any]:
    """All benchmarks; `quick` makes them small enough for a test, too small for a statement."""
    require_scikit_learn()
    rows: list[Row] = []

    def add(*new: Row) -> None:
        rows.extend(new)
        for row in new:
            if tell is not None:
                tell(row)

    count, dim = (1500, 64) if quick else (50_000, 512)
    images = random_images(256 if quick else 2560)
    steps, seconds = cem_step(rounds, images)
    add(*steps)
    add(throughput(rounds, images))
    add(attack_step(max(2, rounds // 2)))
    add(refresh(max(2, rounds // 3), seconds, count, dim))
    add(refresh_memory(count, dim))
    add(em_against_scikit_learn(count, dim, 6 if quick else 30))
    return {
        "rows": [row.as_dict() for row in rows],
        "rounds": rounds,
        "quick": quick,
        "evidence": evidence("cpu"),
    }
