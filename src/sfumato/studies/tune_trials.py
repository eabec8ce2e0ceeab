"""The trainings of a search as trials: what is trained, on which images, and what one of them shows."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sfumato import attacks, data
from sfumato.attacks import CLOSED_FORM, Attack, DecoderConfig, Observer, RidgeConfig, invert, measure_leakage
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

_ATTACKS: dict[str, RidgeConfig | DecoderConfig] = {
    "ridge": RidgeConfig(),
    "decoder": DecoderConfig(epochs=15, batch_size=128, lr=3e-3, width=32, blocks=2),
}


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
    configs = attacks.with_closed_forms(replace(_ATTACKS[attack], seed=seed), seed=seed)
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
) -> dict[str, Any]:
    """What a trained model shows on images that it did not learn from, as `judge.Measured` reads it."""
    found = {name: invert(attacker, model, held, seed=seed) for name, attacker in attackers.items()}
    best = attacks.strongest({name: one.means()["mse"] for name, one in found.items()})
    figures = {}
    for name, attacker in attackers.items():
        assert attacker.outcome is not None
        figures[name] = attacks.figures_of(asdict(attacker.outcome), attacker.history, test=found[name].means())
    right = recognised(model, held, seed=derive_seed(seed, "tune"), draws=draws, bf16=bf16)
    shown = _shown(right, draws, selecting(held.labels, halves), found[best].mse.double())
    return shown | {"strongest": best, "attacks": figures, "leakage": measure_leakage(model, held, seed=seed).as_dict()}


def _shown(right: Tensor, draws: int, half: Tensor, errors: Tensor) -> dict[str, Any]:
    """Plain values, for JSON: one digit per image says how many of the draws were recognised."""
    return {
        "draws": draws,
        "right": "".join(map(str, right.tolist())),
        "selecting": "".join("01"[value] for value in half.tolist()),
        "error_selecting": float(errors[half].mean()),
        "error_confirming": float(errors[~half].mean()),
        "strongest": "",
        "attacks": {},
        "leakage": {},
    }


Train = Callable[[ImageSet, float, float, int], SplitModel]
"""`(images to learn from, lam, noise_std, seed) -> trained split model`; both strengths 0: the undefended baseline."""


@dataclass(frozen=True)
class _Fold(Trial):
    """A training of a search without one fold, attacked and measured on that fold.

    Attributes:
        training: setting and fold.
        space: of the search.
    """

    training: Training
    space: Space

    @property
    def seed(self) -> int:
        """The seed of the training; all settings of a fold share initial weights and order with the baseline."""
        return derive_seed(self.space.seed, "tune", self.training.fold, self.training.repeat) % 2**31

    @property
    def readable(self) -> str:
        """The part of a file name that people read."""
        setting = self.training.setting
        name = f"{setting.defense}-" if setting.defense else ""
        return f"{name}noise{setting.noise_std:g}-lam{setting.lam:g}-f{self.training.fold}-r{self.training.repeat}"

    def parts(self, images: ImageSet) -> tuple[ImageSet, ImageSet]:
        """The images to learn from and those held out."""
        return parts(images, self.space.folds, self.training.fold, self.space.seed)

    def shown(self, model: SplitModel, learn: ImageSet, *on: ImageSet, bf16: bool = False) -> list[dict[str, Any]]:
        """Attack a trained model and measure it on each of these sets."""
        space = self.space
        attackers = fitted(model, learn, attack=space.attack, seed=self.seed)
        how: dict[str, Any] = {"draws": space.draws, "seed": self.seed, "halves": space.seed, "bf16": bf16}
        return [measured(model, attackers, images, **how) for images in on]

    def record(self, shown: dict[str, Any], began: float) -> dict[str, Any]:
        """What the store keeps."""
        fold = {"fold": self.training.fold, "repeat": self.training.repeat}
        return self.training.setting.as_dict() | shown | fold | {"seconds": round(time.monotonic() - began, 2)}


@dataclass(frozen=True)
class ConfiguredTrial(_Fold):
    """A training from settings.

    Attributes:
        training, space: setting and fold, and the search.
        config: the settings that all trainings share.
        images: the images of the search; None reads those that `config` names.
        fresh: images on which the trained model is measured besides, for judging the search; the search never reads it.
    """

    config: TrainConfig
    images: ImageSet | None = None
    fresh: ImageSet | None = None

    @property
    def key(self) -> str:
        """Name of the result."""
        decided: dict[str, Any] = {name: getattr(self.space, name) for name in ("folds", "draws", "attack", "seed")}
        decided |= {"fold": self.training.fold}
        decided |= {"closed_form": list(CLOSED_FORM)}  # results of one attack alone are older, and no part of this
        decided |= {"repeat": self.training.repeat} if self.training.repeat else {}
        text = json.dumps([config_of(self.training.setting, self.config).identity(), decided], sort_keys=True)
        return f"{self.readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def measure(self, workspace: Workspace) -> dict[str, Any]:
        """Train without the fold, attack, measure on the fold; see `Trial.measure`.

        A training whose loss becomes NaN is a result too: a setting that recognises nothing.
        """
        began, draws = time.monotonic(), self.space.draws
        learn, held = self.parts(self.images if self.images is not None else _images(self.config))
        config = replace(config_of(self.training.setting, self.config), seed=self.seed)
        chosen = build_defenses(config, learn.num_classes)
        trainer = Trainer(build_model(config, learn, chosen), chosen, learn, None, config)
        # Beside the folder of its name: where it lay before, so that older checkpoints are resumed.
        state = workspace.folder.with_name(f"{self.key}.safetensors")
        diverged = False
        try:
            trainer.run(state, should_stop=workspace.should_stop)
        except DivergedError:
            zeros, half = torch.zeros(len(held), dtype=torch.int64), selecting(held.labels, self.space.seed)
            shown, diverged = _shown(zeros, draws, half, zeros.double()), True
        else:
            fresh = [] if self.fresh is None else [self.fresh]
            shown, *others = self.shown(trainer.model, learn, held, *fresh, bf16=trainer.bf16)
            shown |= {"fresh": others[0]} if others else {}
        state.unlink(missing_ok=True)
        return self.record(shown, began) | {"diverged": diverged, "evidence": evidence(device_of(self.config.device))}


@dataclass(frozen=True)
class OwnTrial(_Fold):
    """A training of the user's own, called in this process.

    Attributes:
        training, space: setting and fold, and the search.
        own: the user's function.
        images: of the search.
    """

    own: Train
    images: ImageSet

    @property
    def key(self) -> str:
        """Name of the result, within the folder of one search."""
        return f"{self.readable}-{'-'.join(CLOSED_FORM)}"

    def measure(self, workspace: Workspace) -> dict[str, Any]:
        """Let the user's function train, then attack and measure as everywhere."""
        began, setting = time.monotonic(), self.training.setting
        learn, held = self.parts(self.images)
        model = self.own(learn, setting.lam, setting.noise_std, self.seed)
        if not isinstance(model, SplitModel):
            raise ConfigError(
                f"train gave a {type(model).__name__}; return a trained sfumato.SplitModel(edge, channel, cloud)"
            )
        return self.record(self.shown(model, learn, held)[0], began)


def config_of(setting: Setting, config: TrainConfig) -> TrainConfig:
    """The training of this setting; the baseline has no noise and no defence, and everything else in common."""
    if setting == BASELINE:
        return replace(config, noise_std=0.0, cem=False, defense="none", defense_options={})
    cem = setting.lam > 0
    if setting.defense and setting.defense != config.defense:  # the options belong to the other one
        config = replace(config, defense=setting.defense, defense_options={})
    return replace(config, noise_std=setting.noise_std, cem=cem, lam=setting.lam if cem else config.lam)


def train_yaml(config: TrainConfig) -> str:
    """The settings as a file for `sfumato train --config FILE`; what has its default is left out."""
    found: dict[str, Any] = {} if config.line == TrainConfig().line else {"defense": str(config.line)}
    for one in fields(TrainConfig):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if (value := getattr(config, one.name)) != default and one.name not in SETTINGS:
            found[one.name] = value
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in found.items())


def _images(config: TrainConfig) -> ImageSet:
    return _read(config.data, config.data_dir, config.size, config.limit, config.seed)


@lru_cache(maxsize=1)
def _read(data: str, data_dir: str | None, size: int | None, limit: int | None, seed: int) -> ImageSet:
    return load_data(TrainConfig(data=data, data_dir=data_dir, size=size, limit=limit, seed=seed)).train
