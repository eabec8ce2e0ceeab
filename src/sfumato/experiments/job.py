"""One small experiment on the digits: train a split model, attack it with the whole suite, measure its leakage."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sfumato import data
from sfumato.attacks import DecoderConfig, measure_leakage, strongest
from sfumato.data import DataSets
from sfumato.training import TrainConfig, load_run, train_run
from sfumato.training.inversion import attack_suite

__all__ = ["Job", "run_job"]

_SHOWN = 10
_VERSION = 2  # of what a job measures; changes the keys, so that results of an older kind are not taken for its own


@dataclass(frozen=True)
class Job:
    """A training and its attacks on the digits.

    Attributes:
        defense: how tables call it: `none`, `noise` or `noise+cem`.
        train: settings of the training.
        attack: settings of the attack that trains; those in closed form run beside it.
        fold: which of `folds` parts is the test set; None takes the standard split.
        folds: number of parts.
        folder: of the run, which is left as `sfumato train` leaves one; None keeps none.
    """

    defense: str
    train: TrainConfig
    attack: DecoderConfig
    fold: int | None = None
    folds: int = 5
    folder: str | None = None

    @property
    def key(self) -> str:
        """A file name that changes with every setting, so that results of other settings are never mixed in."""
        text = json.dumps([self.defense, self.train.identity(), asdict(self.attack), self.fold, self.folds, _VERSION])
        return f"{self.defense.replace('+', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def left(self) -> bool:
        """Whether the run that it should leave is there; True where it should leave none."""
        return self.folder is None or (Path(self.folder) / "result.json").exists()


def run_job(job: Job) -> dict[str, Any]:
    """Train, attack, measure on training and on test images; plain values only.

    The figures are those of the strongest attack, on training and on test images separately; `attacks` holds all of
    them with their histories.
    """
    began = time.monotonic()
    sets = _sets(job.fold, job.folds)
    with _folder(job) as folder:
        trained = train_run(job.train, folder, sets=sets)
        run = load_run(folder)
        suite = attack_suite(run, sets, [job.attack])
        leakage = measure_leakage(run.model, sets.test, seed=job.train.seed).as_dict()
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures, shown = suite.figures(), suite.attacks[suite.strongest]
    on_train = strongest({name: one["train"]["mse"] for name, one in figures.items()})
    return {
        "defense": job.defense,
        "seed": job.train.seed,
        "fold": job.fold,
        "noise_std": job.train.noise_std,
        "lam": job.train.lam if job.train.cem else 0.0,
        "accuracy": trained["accuracy"],
        "strongest": suite.strongest,
        "strongest_train": on_train,
        **{f"{name}_train": figures[on_train]["train"][name] for name in ("mse", "psnr", "ssim")},
        **{f"{name}_test": figures[suite.strongest]["test"][name] for name in ("mse", "psnr", "ssim")},
        **leakage,
        "attacks": figures,
        "information_history": [line["cem_information"] for line in epochs if "cem_information" in line],
        "job_seconds": round(time.monotonic() - began, 3),
        "originals": _bytes(shown.originals[:_SHOWN]),
        "reconstructed": _bytes(shown.test.images[:_SHOWN]),
        "train_config": job.train.as_dict(),
        "attack_config": asdict(job.attack),
        "data": trained["data"],
        "evidence": trained["evidence"],
    }


@contextmanager
def _folder(job: Job) -> Iterator[Path]:
    if job.folder is not None:
        yield Path(job.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


@cache
def _sets(fold: int | None, folds: int) -> DataSets:
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
