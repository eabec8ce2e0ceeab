"""One small experiment: train a split model, attack it, measure both. A value in, a value out."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch

from sfumato import data
from sfumato.attacks import DecoderAttack, DecoderConfig, Observer, invert
from sfumato.data import DataSets
from sfumato.evidence import evidence
from sfumato.seeds import derive_seed
from sfumato.training import TrainConfig, Trainer, accuracy, build_defenses, build_model, split_training_set

__all__ = ["Job", "run_job"]

_SHOWN = 10


@dataclass(frozen=True)
class Job:
    """A training and an attack on the digits.

    Attributes:
        defense: how tables call it: `none`, `noise` or `noise+cem`.
        train: settings of the training.
        attack: settings of the attack.
        fold: which of `folds` parts is the test set; None takes the standard split.
        folds: number of parts.
    """

    defense: str
    train: TrainConfig
    attack: DecoderConfig
    fold: int | None = None
    folds: int = 5
    draws: int = field(default=10)

    @property
    def key(self) -> str:
        """A file name that changes with every setting, so that results of other settings are never mixed in."""
        text = json.dumps([self.defense, self.train.identity(), asdict(self.attack), self.fold, self.folds, self.draws])
        return f"{self.defense.replace('+', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run_job(job: Job) -> dict[str, Any]:
    """Train, attack, measure on training and on test images; plain values only."""
    began = time.monotonic()
    sets = _sets(job.fold, job.folds, job.train.seed)
    fit, held_out = split_training_set(sets.train, job.train)
    defenses = build_defenses(job.train, sets.train.num_classes)
    model = build_model(job.train, sets.train, defenses)
    trainer = Trainer(model, defenses, fit, held_out, job.train)
    history = trainer.run()
    attack = DecoderAttack(job.attack).fit(Observer(model, sets.train))
    assert attack.outcome is not None
    on_train = invert(attack, model, sets.train, seed=job.train.seed).means()
    shown = invert(attack, model, sets.test, seed=job.train.seed, keep=_SHOWN)
    on_test = shown.means()
    return {
        "defense": job.defense,
        "seed": job.train.seed,
        "fold": job.fold,
        "noise_std": job.train.noise_std,
        "lam": job.train.lam if job.train.cem else 0.0,
        "accuracy": accuracy(model, sets.test, seed=derive_seed(job.train.seed, "test"), draws=job.draws),
        "accuracy_held_out": history[-1].get("accuracy_held_out"),
        "mse_train": on_train["mse"],
        "mse_test": on_test["mse"],
        "psnr_train": on_train["psnr"],
        "psnr_test": on_test["psnr"],
        "ssim_train": on_train["ssim"],
        "ssim_test": on_test["ssim"],
        "information": history[-1].get("cem_information"),
        "information_history": [line["cem_information"] for line in history if "cem_information" in line],
        "converged": attack.outcome.converged,
        "reason": attack.outcome.reason,
        "train_seconds": round(sum(line["seconds"] for line in history), 3),
        "job_seconds": round(time.monotonic() - began, 3),
        "originals": _bytes(sets.test.float(shown.index[:_SHOWN])),
        "redrawn": _bytes(shown.images),
        "train_config": job.train.as_dict(),
        "attack_config": asdict(job.attack),
        "data": sets.train.fingerprint(),
        "evidence": evidence("cpu"),
    }


@cache
def _sets(fold: int | None, folds: int, seed: int) -> DataSets:
    sets = data.load("digits", seed=0)
    if fold is None:
        return sets
    every = replace(
        sets.train,
        images=torch.cat([sets.train.images, sets.test.images]),
        labels=torch.cat([sets.train.labels, sets.test.labels]),
    )
    train, test = data.folds(every, folds, 0)[fold]
    return replace(sets, train=train, test=test)


def _bytes(images: torch.Tensor) -> list[Any]:
    values: list[Any] = images.mul(255).round().to(torch.uint8).tolist()
    return values
