"""The trainings of a search as trials: what is trained, on which images, and what comes out of it."""

import hashlib
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from functools import lru_cache
from typing import Any

from sfumato.attacks import CLOSED_FORM
from sfumato.compute import device_of
from sfumato.data import ImageSet
from sfumato.defenses.notation import SETTINGS
from sfumato.errors import ConfigError, DivergedError
from sfumato.evidence import evidence
from sfumato.seeds import derive_seed
from sfumato.split import SplitModel
from sfumato.studies.engine import Trial, Workspace
from sfumato.studies.measure import fitted, measured, nothing, parts
from sfumato.studies.space import BASELINE, Setting, Space, Training
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model, load_data

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
    for field in fields(TrainConfig):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if (value := getattr(config, field.name)) != default and field.name not in SETTINGS:
            found[field.name] = value
    return found
