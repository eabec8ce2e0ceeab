"""Speed as ratios to baselines that run in the same process, at the same time, on the same machine."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sfumato.bench.attack import attack_step
from sfumato.bench.loading import batches
from sfumato.bench.mixture import em_against_scikit_learn, refresh, refresh_memory, require_scikit_learn
from sfumato.bench.published_loop import against_published
from sfumato.bench.roofline import roofline
from sfumato.bench.rows import Row
from sfumato.bench.scaling import scaling
from sfumato.bench.step import CONFIG, cem_step, defense_steps, feature_pass, many_clusters, random_images, throughput
from sfumato.bench.timing import Timing, take_turns
from sfumato.compute import cpu_has_bf16
from sfumato.errors import SfumatoWarning
from sfumato.evidence import evidence

__all__ = ["Row", "Timing", "run_bench", "take_turns"]


def run_bench(*, rounds: int = 15, quick: bool = False, tell: Callable[[Row], None] | None = None) -> dict[str, Any]:
    """All benchmarks; `quick` makes them small enough for a test, too small for a statement."""
    require_scikit_learn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # what random features are worth does not matter for speed
        return _run(rounds, quick, tell)


def _run(rounds: int, quick: bool, tell: Callable[[Row], None] | None) -> dict[str, Any]:
    rows: list[Row] = []

    def add(*new: Row) -> None:
        rows.extend(new)
        for row in new:
            if tell is not None:
                tell(row)

    count, dim = (1500, 64) if quick else (50_000, 512)
    config = replace(CONFIG, batch_size=8) if quick else CONFIG
    images = random_images(100 if quick else 2560)
    steps, seconds = cem_step(rounds, images, config)
    add(*steps)
    add(many_clusters(rounds, len(images), count, config))
    add(against_published(rounds, images, config))
    add(throughput(rounds, images, config))
    add(*defense_steps(max(2, rounds // 2), images, config))
    attack, attack_seconds = attack_step(max(2, rounds // 2), 16 if quick else 256)
    add(attack)
    add(batches(rounds, images, config.batch_size))
    add(feature_pass(max(2, rounds // 3), images, config))
    add(refresh(max(2, rounds // 3), seconds, count, dim))
    add(refresh_memory(count, dim))
    add(em_against_scikit_learn(count, dim, 6 if quick else 30))
    device = torch.device("cpu")
    return {
        "rows": [row.as_dict() for row in rows],
        "scaling": [one.as_dict() for one in scaling(max(2, rounds // 3), quick=quick)],
        "roofline": roofline(device, seconds, attack_seconds, cpu_has_bf16(), max(3, rounds // 3), quick=quick),
        "rounds": rounds,
        "quick": quick,
        "evidence": evidence("cpu"),
    }
