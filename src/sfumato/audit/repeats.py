"""The same image sent more than once: an attacker who averages the answers, at several numbers of queries."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sfumato import attacks
from sfumato.attacks import Observer, Queries, aggregate, encode_repeated, invert_released
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Stop, Tell, outcome_of
from sfumato.audit.measure import summary
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.data import ImageSet
from sfumato.errors import Interrupted
from sfumato.seeds import generator
from sfumato.split import SplitModel

__all__ = ["AveragingObserver", "run_repeats"]

_CHUNK = 64  # images whose K answers are held at once

_LABELS = {
    "exact": "exact repeats",
    "levels": "near-duplicates, pixels a level up or down",
    "shift": "near-duplicates, shifted by a pixel",
    "recode": "near-duplicates, encoded again",
    "devices": "one image from K devices",
}


class AveragingObserver(Observer):
    """An attacker who has every image sent K times and averages what leaves the device.

    The mean is a sufficient statistic for exact repeats under Gaussian noise; for near-duplicates it is one attack.

    Args:
        model: the victim.
        images: the attacker's.
        queries: how often, with what noise and in what form.
        device: where to compute.
    """

    def __init__(
        self, model: SplitModel, images: ImageSet, queries: Queries, *, device: torch.device | str = "cpu"
    ) -> None:
        self.queries = queries
        super().__init__(model, images, device=device)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean of K answers, (n, ...)."""
        return average_answers(self._model, x.to(self.device), self.queries, generator)


def average_answers(model: SplitModel, x: Tensor, queries: Queries, random: torch.Generator | None = None) -> Tensor:
    """What leaves the device for K queries of each image, averaged over them."""
    parts = [
        aggregate(
            encode_repeated(
                model,
                part,
                queries=queries.queries,
                noise=queries.noise,
                duplicates=queries.duplicates,
                generator=random,
            )
        )
        for part in x.split(_CHUNK)
    ]
    return torch.cat(parts)


def run_repeats(piece: Piece, stage: Stage, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Fit the attack anew for every K and redraw the test images from averaged answers."""
    began = time.monotonic()
    plan = Queries(1, piece.options["noise"], piece.options["duplicates"])
    train = shuffled(stage.sets.train, piece.options.get("train", len(stage.sets.train)), stage.seed, "attacker")
    test = stage.test.first(piece.images or len(stage.test))
    points = []
    for count in piece.options["queries"]:
        if should_stop is not None and should_stop():
            raise Interrupted("the audit was stopped; the same command goes on from there")
        queries = replace(plan, queries=count)
        observer = AveragingObserver(stage.subject.model, train, queries, device=stage.device)
        attack = attacks.build(config_of(piece, stage, decided))
        state = stage.folder.state(f"{piece.name}.state{count}")
        attack.fit(observer, state=state, should_stop=should_stop)
        random = generator(stage.seed, "audit-repeats", count, device=stage.device)
        z = torch.cat(
            [
                average_answers(stage.subject.model, test.images.float(part).to(stage.device), queries, random).cpu()
                for part in torch.arange(len(test)).split(_CHUNK)
            ]
        )
        figures = summary(invert_released(attack, test.images, z, device=stage.device))
        points.append({"queries": count, "label": f"K = {count}", "known": len(train)} | figures)
        tell(f"{piece.name}: {count} queries, error {figures['mse']['mean']:.5f}")
    figures_of_piece = {
        "name": piece.name,
        "attack": piece.attack,
        "noise": plan.noise,
        "duplicates": plan.duplicates,
        "label": f"{_LABELS[plan.duplicates]}, {plan.noise} noise ({piece.attack})",
        "points": points,
        "note": "",
        **outcome_of(attack),
        "seconds": round(time.monotonic() - began, 2),
    }
    stage.folder.finish(piece.name, figures_of_piece)
