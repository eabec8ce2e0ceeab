"""One training of the search as a value: what is trained, on which images, and what comes out of it."""

import hashlib
import json
import time
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sfumato import defenses
from sfumato.attacks import CLOSED_FORM
from sfumato.compute import device_of
from sfumato.data import ImageSet
from sfumato.errors import DivergedError, SfumatoWarning
from sfumato.evidence import evidence
from sfumato.seeds import derive_seed
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model, load_data
from sfumato.tuning.measure import fitted, measured, nothing, parts
from sfumato.tuning.space import BASELINE, Setting, Space, Trial

__all__ = ["Task", "config_of", "readable", "run_task", "train_task", "training_seed", "trial_key"]


@dataclass(frozen=True)
class Task:
    """A trial with everything a worker needs.

    Attributes:
        trial: setting and fold.
        config: the settings that all trainings share.
        space: of the search.
        images: the images of the search; None reads those that `config` names.
        fresh: images on which the trained model is measured besides, for judging the search; the search never reads it.
        work: folder of the checkpoint while it trains.
        deadline: `time.time()` after which it saves and leaves; None: no limit.
        plugins: files to run first, which register defences.
    """

    trial: Trial
    config: TrainConfig
    space: Space
    images: ImageSet | None = None
    fresh: ImageSet | None = None
    work: Path | None = None
    deadline: float | None = None
    plugins: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the result."""
        return trial_key(self.trial, self.config, self.space)

    @property
    def seed(self) -> int:
        """Of the training; one per fold, so that all settings share initial weights and order with the baseline."""
        return training_seed(self.space, self.trial)


def training_seed(space: Space, trial: Trial) -> int:
    """The seed of a training, the same for all settings."""
    return derive_seed(space.seed, "tune", trial.fold, trial.repeat) % 2**31


def config_of(setting: Setting, config: TrainConfig) -> TrainConfig:
    """The training of this setting; the baseline has no noise and no defence, and everything else in common."""
    if setting == BASELINE:
        return replace(config, noise_std=0.0, cem=False, defense="none", defense_options={})
    cem = setting.lam > 0
    if setting.defense and setting.defense != config.defense:  # the options belong to the other one
        config = replace(config, defense=setting.defense, defense_options={})
    return replace(config, noise_std=setting.noise_std, cem=cem, lam=setting.lam if cem else config.lam)


def trial_key(trial: Trial, config: TrainConfig, space: Space) -> str:
    """A file name: readable in front, and with a digest of everything that decides the result behind."""
    own: dict[str, Any] = {
        "folds": space.folds,
        "draws": space.draws,
        "attack": space.attack,
        "seed": space.seed,
        "fold": trial.fold,
    }
    own |= {"closed_form": list(CLOSED_FORM)}  # older results are those of one attack alone, and no part of this search
    own |= {"repeat": trial.repeat} if trial.repeat else {}
    text = json.dumps([config_of(trial.setting, config).identity(), own], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{readable(trial)}-{digest}"


def readable(trial: Trial) -> str:
    """The part of a file name that people read."""
    own = trial.setting
    name = f"{own.defense}-" if own.defense else ""
    return f"{name}noise{own.noise_std:g}-lam{own.lam:g}-f{trial.fold}-r{trial.repeat}"


def run_task(task: Task) -> dict[str, Any]:
    """Train without the fold, attack, measure on the fold; plain values only.

    A training whose loss becomes NaN is a result too: a setting that recognises nothing.

    Raises:
        Interrupted: the deadline passed; the same task goes on from its checkpoint.
    """
    began = time.monotonic()
    for plugin in task.plugins:
        defenses.load_plugin(plugin)
    space, setting = task.space, task.trial.setting
    images = task.images if task.images is not None else _images(task.config)
    learn, held = parts(images, space.folds, task.trial.fold, space.seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SfumatoWarning)
        trainer = train_task(task, learn)
        shown = _shown(trainer, learn, held, task)
    said = {str(one.message): None for one in caught if issubclass(one.category, SfumatoWarning)}
    return {
        **setting.as_dict(),
        "fold": task.trial.fold,
        "repeat": task.trial.repeat,
        **shown,
        "diverged": trainer is None,
        "warnings": list(said),
        "seconds": round(time.monotonic() - began, 2),
        "evidence": evidence(device_of(task.config.device)),
    }


def _shown(trainer: Trainer | None, learn: ImageSet, held: ImageSet, task: Task) -> dict[str, Any]:
    space, seed = task.space, task.seed
    if trainer is None:
        return nothing(held, halves=space.seed).as_dict(space.draws)
    attackers = fitted(trainer.model, learn, attack=space.attack, seed=seed)
    options: dict[str, Any] = {"draws": space.draws, "seed": seed, "halves": space.seed, "bf16": trainer.bf16}
    shown = measured(trainer.model, attackers, held, **options).as_dict(space.draws)
    if task.fresh is not None:
        shown["fresh"] = measured(trainer.model, attackers, task.fresh, **options).as_dict(space.draws)
    return shown


def train_task(task: Task, learn: ImageSet) -> Trainer | None:
    """Train on `learn`, from the checkpoint of an earlier call where there is one; None if the loss became NaN."""
    config = replace(config_of(task.trial.setting, task.config), seed=task.seed)
    chosen = build_defenses(config, learn.num_classes)
    trainer = Trainer(build_model(config, learn, chosen), chosen, learn, None, config)
    state = None if task.work is None else task.work / f"{task.key}.safetensors"

    def late() -> bool:
        return task.deadline is not None and time.time() >= task.deadline

    try:
        trainer.run(state, should_stop=late)
    except DivergedError:
        return None
    if state is not None:
        state.unlink(missing_ok=True)
    return trainer


def _images(config: TrainConfig) -> ImageSet:
    return _read(config.data, config.data_dir, config.size, config.limit, config.seed)


@lru_cache(maxsize=1)
def _read(data: str, data_dir: str | None, size: int | None, limit: int | None, seed: int) -> ImageSet:
    return load_data(TrainConfig(data=data, data_dir=data_dir, size=size, limit=limit, seed=seed)).train
