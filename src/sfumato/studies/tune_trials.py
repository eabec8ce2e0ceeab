"""The trainings of a search as trials: what is trained, on which images, and what one of them shows."""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from sfumato import attacks, data
from sfumato.attacks import (
    CLOSED_FORM,
    Attack,
    AttackConfig,
    DecoderConfig,
    Observer,
    RidgeConfig,
    invert,
    measure_leakage,
)
from sfumato.compute import device_of
from sfumato.data import ImageSet
from sfumato.defenses.notation import SETTINGS
from sfumato.errors import ConfigError, DataError, DivergedError
from sfumato.provenance import evidence
from sfumato.seeds import derive_seed, generator
from sfumato.split import SplitModel
from sfumato.studies.engine import Trial, Workspace
from sfumato.studies.space import BASELINE, Setting, Space, Training
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model, load_data
from sfumato.training.evaluate import recognised

_ATTACKS: dict[str, Callable[[int], AttackConfig]] = {
    "ridge": lambda seed: RidgeConfig(seed=seed),
    "decoder": lambda seed: DecoderConfig(epochs=15, batch_size=128, lr=3e-3, width=32, blocks=2, seed=seed),
}


@dataclass(frozen=True)
class Measured:
    """One training's figures on the images that it did not learn from.

    Attributes:
        right: share of the noise draws with which each image was recognised, (n,).
        selecting: which of the images belong to the half that selects, (n,) bool; the others confirm.
        errors: the strongest attacker's mean squared error on the half that selects and on the one that confirms.
        strongest: the attack with the smallest error on both halves together.
        attacks: figures of every attack, from which its convergence is judged whenever it is shown.
        leakage: as `measure_leakage` gives it, on all held-out images; empty where nothing was attacked.
    """

    right: Tensor
    selecting: Tensor
    errors: tuple[float, float]
    strongest: str = ""
    attacks: Mapping[str, Any] = field(default_factory=dict)
    leakage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def converged(self) -> bool | None:
        """Whether every attack had come to rest, by today's rule; None where nothing was stored to judge by."""
        return attacks.suite_verdict({"attacks": self.attacks}).converged

    def as_dict(self, draws: int) -> dict[str, Any]:
        """Plain values, for JSON: one digit per image says how many of the draws were recognised."""
        counts = (self.right * draws).round().long().tolist()
        return {
            "draws": draws,
            "right": "".join(map(str, counts)),
            "selecting": "".join("01"[value] for value in self.selecting.tolist()),
            "error_selecting": self.errors[0],
            "error_confirming": self.errors[1],
            "strongest": self.strongest,
            "attacks": dict(self.attacks),
            "leakage": dict(self.leakage),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `as_dict` gave."""
        right = torch.tensor([int(digit) for digit in values["right"]], dtype=torch.float64) / values["draws"]
        half = torch.tensor([digit == "1" for digit in values["selecting"]])
        errors = values["error_selecting"], values["error_confirming"]
        return cls(right, half, errors, values["strongest"], values["attacks"], values["leakage"])


def parts(images: ImageSet, folds: int, fold: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images to learn from and those held out, in fold `fold`; stratified by class."""
    learn, held = data.folds(images, folds, seed)[fold]
    if len(learn.labels.unique()) < len(images.labels.unique()):
        raise DataError(
            f"{len(images)} images are too few for {folds} folds of {images.num_classes} classes: a class would have "
            "none to learn from; use more images or fewer folds"
        )
    return learn, held


def selecting(labels: Tensor, seed: int) -> Tensor:
    """Which held-out images select, (n,) bool: half of them, and of each class half, up to one image."""
    order = torch.randperm(len(labels), generator=generator(seed, "halves"))
    order = order[labels[order].argsort(stable=True)]
    half = torch.zeros(len(labels), dtype=torch.bool)
    half[order[::2]] = True
    return half


def fitted(model: SplitModel, learn: ImageSet, *, attack: str, seed: int) -> dict[str, Attack]:
    """The attackers of a trained model: those in closed form, and a briefly trained one where `attack` is `decoder`.

    They learn from the images that the model learned from.
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    observer = Observer(model, learn, device=device)
    configs = attacks.with_closed_forms(_ATTACKS[attack](seed), seed=seed)
    return {attacks.name_of(config): attacks.build(config).fit(observer) for config in configs}


def measured(
    model: SplitModel,
    attackers: Mapping[str, Attack],
    held: ImageSet,
    *,
    draws: int,
    seed: int,
    halves: int,
    bf16: bool = False,
) -> Measured:
    """Measure a trained model."""
    right = recognised(model, held, seed=derive_seed(seed, "tune"), draws=draws, bf16=bf16).double() / draws
    half = selecting(held.labels, halves)
    found = {name: invert(attacker, model, held, seed=seed) for name, attacker in attackers.items()}
    best = attacks.strongest({name: one.means()["mse"] for name, one in found.items()})
    each = found[best].mse.double()
    figures = {}
    for name, attacker in attackers.items():
        assert attacker.outcome is not None
        figures[name] = attacks.figures_of(asdict(attacker.outcome), attacker.history, test=found[name].means())
    leakage = measure_leakage(model, held, seed=seed).as_dict()
    return Measured(right, half, (float(each[half].mean()), float(each[~half].mean())), best, figures, leakage)


def nothing(held: ImageSet, *, halves: int) -> Measured:
    """What a training shows whose loss became NaN: a model that recognises nothing, and no attack."""
    return Measured(torch.zeros(len(held), dtype=torch.float64), selecting(held.labels, halves), (0.0, 0.0))


Train = Callable[[ImageSet, float, float, int], SplitModel]
"""`(images to learn from, lam, noise_std, seed) -> trained split model`; both strengths 0: the undefended baseline."""


@dataclass(frozen=True)
class ConfiguredTrial(Trial):
    """A training from settings.

    Attributes:
        training: setting and fold.
        config: the settings that all trainings share.
        space: of the search.
        images: the images of the search; None reads those that `config` names.
        fresh: images on which the trained model is measured besides, for judging the search; the search never reads it.
    """

    training: Training
    config: TrainConfig
    space: Space
    images: ImageSet | None = None
    fresh: ImageSet | None = None

    @property
    def key(self) -> str:
        """Name of the result."""
        space, training = self.space, self.training
        decided: dict[str, Any] = {
            "folds": space.folds,
            "draws": space.draws,
            "attack": space.attack,
            "seed": space.seed,
            "fold": training.fold,
            "closed_form": list(CLOSED_FORM),  # results of one attack alone are older, and no part of this search
        }
        decided |= {"repeat": training.repeat} if training.repeat else {}
        text = json.dumps([config_of(training.setting, self.config).identity(), decided], sort_keys=True)
        return f"{_readable(training)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def measure(self, workspace: Workspace) -> dict[str, Any]:
        """Train without the fold, attack, measure on the fold; see `Trial.measure`.

        A training whose loss becomes NaN is a result too: a setting that recognises nothing.
        """
        began, space, seed = time.monotonic(), self.space, training_seed(self.space, self.training)
        images = self.images if self.images is not None else _images(self.config)
        learn, held = parts(images, space.folds, self.training.fold, space.seed)
        config = replace(config_of(self.training.setting, self.config), seed=seed)
        chosen = build_defenses(config, learn.num_classes)
        trainer = Trainer(build_model(config, learn, chosen), chosen, learn, None, config)
        # Beside the folder of its name: where it lay before, so that older checkpoints are resumed.
        state = workspace.folder.with_name(f"{self.key}.safetensors")
        try:
            trainer.run(state, should_stop=workspace.should_stop)
        except DivergedError:
            shown, diverged = nothing(held, halves=space.seed).as_dict(space.draws), True
        else:
            shown, diverged = _shown(trainer.model, learn, held, space, seed, trainer.bf16, self.fresh), False
        state.unlink(missing_ok=True)
        return _record(self.training, shown, began) | {
            "diverged": diverged,
            "evidence": evidence(device_of(self.config.device)),
        }


@dataclass(frozen=True)
class OwnTrial(Trial):
    """A training of the user's own, called in this process.

    Attributes:
        training: setting and fold.
        own: the user's function.
        images: of the search.
        space: of the search.
    """

    training: Training
    own: Train
    images: ImageSet
    space: Space

    @property
    def key(self) -> str:
        """Name of the result, within the folder of one search."""
        return f"{_readable(self.training)}-{'-'.join(CLOSED_FORM)}"

    def measure(self, workspace: Workspace) -> dict[str, Any]:
        """Let the user's function train, then attack and measure as everywhere."""
        began, space, setting = time.monotonic(), self.space, self.training.setting
        learn, held = parts(self.images, space.folds, self.training.fold, space.seed)
        seed = training_seed(space, self.training)
        model = self.own(learn, setting.lam, setting.noise_std, seed)
        if not isinstance(model, SplitModel):
            raise ConfigError(
                f"train gave a {type(model).__name__}; return a trained sfumato.SplitModel(edge, channel, cloud)"
            )
        return _record(self.training, _shown(model, learn, held, space, seed), began)


def training_seed(space: Space, training: Training) -> int:
    """The seed of a training; all settings of a fold share initial weights and order with the baseline."""
    return derive_seed(space.seed, "tune", training.fold, training.repeat) % 2**31


def config_of(setting: Setting, config: TrainConfig) -> TrainConfig:
    """The training of this setting; the baseline has no noise and no defence, and everything else in common."""
    if setting == BASELINE:
        return replace(config, noise_std=0.0, cem=False, defense="none", defense_options={})
    cem = setting.lam > 0
    if setting.defense and setting.defense != config.defense:  # the options belong to the other one
        config = replace(config, defense=setting.defense, defense_options={})
    return replace(config, noise_std=setting.noise_std, cem=cem, lam=setting.lam if cem else config.lam)


def train_command(config: TrainConfig, run: str, plugins: tuple[str, ...] = ()) -> str:
    """The `sfumato train` line that trains `config` in the folder `run`; what has its default is left out."""
    words = ["sfumato", "train"]
    for name, value in _changed(config).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{name.replace('_', '-')}")
        else:
            words += [option, str(value)]
    if plugins:
        words += ["--plugin", *plugins]
    return shlex.join([*words, "--run", run])


def train_yaml(config: TrainConfig) -> str:
    """The same as a file for `sfumato train --config FILE`."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in _changed(config).items())


def _readable(training: Training) -> str:
    """The part of a file name that people read."""
    setting = training.setting
    name = f"{setting.defense}-" if setting.defense else ""
    return f"{name}noise{setting.noise_std:g}-lam{setting.lam:g}-f{training.fold}-r{training.repeat}"


def _shown(
    model: SplitModel,
    learn: ImageSet,
    held: ImageSet,
    space: Space,
    seed: int,
    bf16: bool = False,
    fresh: ImageSet | None = None,
) -> dict[str, Any]:
    attackers = fitted(model, learn, attack=space.attack, seed=seed)

    def on(images: ImageSet) -> dict[str, Any]:
        figures = measured(model, attackers, images, draws=space.draws, seed=seed, halves=space.seed, bf16=bf16)
        return figures.as_dict(space.draws)

    return on(held) | ({} if fresh is None else {"fresh": on(fresh)})


def _record(training: Training, shown: dict[str, Any], began: float) -> dict[str, Any]:
    fold = {"fold": training.fold, "repeat": training.repeat, "seconds": round(time.monotonic() - began, 2)}
    return training.setting.as_dict() | shown | fold


def _images(config: TrainConfig) -> ImageSet:
    return _read(config.data, config.data_dir, config.size, config.limit, config.seed)


@lru_cache(maxsize=1)
def _read(data: str, data_dir: str | None, size: int | None, limit: int | None, seed: int) -> ImageSet:
    return load_data(TrainConfig(data=data, data_dir=data_dir, size=size, limit=limit, seed=seed)).train


def _changed(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = {} if config.line == TrainConfig().line else {"defense": str(config.line)}
    for one in fields(TrainConfig):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if (value := getattr(config, one.name)) != default and one.name not in SETTINGS:
            found[one.name] = value
    return found
