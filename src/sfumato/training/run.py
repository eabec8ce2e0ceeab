"""Run folders: everything needed to run a training again, written as it happens, resumed by calling again.

config.json         settings, the data's fingerprint and its caveat
metrics.jsonl       one line per epoch
state.safetensors   checkpoint while the training runs
model.safetensors   weights, at the end
result.json         written last: its presence means the run is complete
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato import checkpoint, data
from sfumato.data import DataSets, ImageSet
from sfumato.data.images import WIDEST
from sfumato.distributed import Ranks
from sfumato.errors import CheckpointError, ConfigError, DataError, first_line
from sfumato.files import json_line, occupied, read_json, sha256_of, write_json, write_text
from sfumato.models.widths import fit_to_state
from sfumato.provenance import evidence
from sfumato.seeds import derive_seed
from sfumato.settings import check_type
from sfumato.split import SplitModel
from sfumato.split.saved import SPLIT, read_split
from sfumato.training.build import build_defenses, build_model
from sfumato.training.config import TrainConfig
from sfumato.training.evaluate import accuracy, measure_information
from sfumato.training.trainer import OnEpoch, OnStep, Trainer, check_ranks

__all__ = ["Run", "Trained", "load_data", "load_run", "load_trained", "split_training_set", "train_run"]

Loading = Callable[[int, int], None]

_MOST_DRAWS = 10
_PRUNED = 1000  # a pruned model may be so many times smaller than its settings say
_RESULT = {"data": str, "accuracy": float, "test_images": int, "evidence": dict[str, Any]}  # what others read of it


@dataclass(frozen=True)
class Run:
    """A finished training, read back.

    Attributes:
        config: its settings.
        model: the trained split model in evaluation mode.
        result: its `result.json`.
        folder: where it lies.
    """

    config: TrainConfig
    model: SplitModel
    result: dict[str, Any]
    folder: Path


def load_data(config: TrainConfig, progress: Loading | None = None) -> DataSets:
    """The data set of a configuration, its training part limited as asked."""
    # The split of the digits stays the same for all seeds, so that runs with different seeds can be compared.
    sets = data.load(
        config.data, config.data_dir, seed=0, size=config.size, progress=progress,
        skip_unreadable=config.skip_unreadable,
    )  # fmt: skip
    if config.limit is not None and config.limit < len(sets.train):
        sets = replace(sets, train=data.limit(sets.train, config.limit, config.seed))
    if config.test_limit is not None and config.test_limit < len(sets.test):
        sets = replace(sets, test=data.limit(sets.test, config.test_limit, 0))  # the same ones for all seeds
    return sets


def split_training_set(train: ImageSet, config: TrainConfig) -> tuple[ImageSet, ImageSet | None]:
    """The part to learn from and the part held out of it."""
    if config.hold_out == 0:
        return train, None
    return data.hold_out(train, config.hold_out, config.seed)


def train_run(
    config: TrainConfig,
    folder: Path,
    *,
    sets: DataSets | None = None,
    on_start: OnStep | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train in `folder`, from where an earlier call was interrupted; give the result.

    In data-parallel training every rank calls it with the same arguments; rank 0 alone reads and writes the folder and
    measures, and all get the result.

    Raises:
        CheckpointError: the folder holds another run, or another process trains in it.
        Interrupted: `should_stop` said so; the next call resumes there.
    """
    with ExitStack() as held:
        sets = sets or load_data(config, on_start)
        ranks = Ranks.current()
        ranks.first(lambda: held.enter_context(occupied(folder)))
        check_ranks(ranks, sets.train, config)
        if (finished := ranks.first(lambda: _begun(folder, config, sets))) is not None:
            return finished
        fit, held_out = split_training_set(sets.train, config)
        if len(fit) < fit.num_classes:
            raise ConfigError(
                f"{len(fit)} training images for {fit.num_classes} classes are too few; raise --limit or lower "
                "--hold-out"
            )
        defenses = build_defenses(config, sets.train.num_classes)
        model = build_model(config, sets.train, defenses)
        trainer = Trainer(model, defenses, fit, held_out, config)

        def record(line: dict[str, Any]) -> None:
            ranks.first(lambda: _write_lines(folder / "metrics.jsonl", trainer.history))
            if on_epoch is not None:
                on_epoch(line)

        trainer.run(folder / "state.safetensors", on_step=on_step, on_epoch=record, should_stop=should_stop)
        return ranks.first(lambda: _finish(folder, config, sets, trainer, ranks))


def _finish(folder: Path, config: TrainConfig, sets: DataSets, trainer: Trainer, ranks: Ranks) -> dict[str, Any]:
    """Measure the trained model and write what belongs to a finished run, on one rank."""
    model, history, fit, held_out = trainer.model, trainer.history, trainer.train, trainer.held_out
    _write_lines(folder / "metrics.jsonl", history)
    meta = {
        "config": config.as_dict(),
        "classes": list(sets.train.classes),
        "image_shape": sets.train.image_shape,
    }
    checkpoint.save(folder / "model.safetensors", model.state_dict(), meta)
    information = measure_information(model, sets.test, seed=config.seed, bf16=trainer.bf16)
    draws = max(1, min(_MOST_DRAWS, 4000 // len(sets.test)))  # of the noise: small sets need several
    result = {
        "accuracy": accuracy(model, sets.test, seed=derive_seed(config.seed, "test"), draws=draws),
        "accuracy_held_out": history[-1].get("accuracy_held_out"),
        "cem_information": history[-1].get("cem_information"),  # of the training features: a signal, not a bound
        "information": information.get("held_out"),
        "information_bounds": information,
        "train_images": len(fit),
        "held_out_images": len(held_out) if held_out is not None else 0,
        "test_images": len(sets.test),
        "caveat": sets.caveat,
        "seconds": sum(line["seconds"] for line in history),
        "config": config.as_dict(),
        "data": sets.train.fingerprint(),
        "evidence": evidence(trainer.device, bf16=trainer.bf16) | ({} if ranks.alone else {"ranks": ranks.size}),
    }
    write_json(folder / "result.json", result)
    (folder / "state.safetensors").unlink(missing_ok=True)
    return result


def load_run(folder: Path, *, device: torch.device | str = "cpu") -> Run:
    """Read a finished run back.

    Raises:
        CheckpointError: there is no run, or it is not finished, or its files do not fit together.
    """
    if not (folder / "config.json").exists():
        saved = "; `sfumato audit` takes a model of save_split" if (folder / SPLIT).exists() else ""
        raise CheckpointError(
            f"{folder} is not a run folder (no config.json){saved}; make one with `sfumato train --run {folder}`"
        )
    if not (folder / "result.json").exists():
        raise CheckpointError(
            f"the run in {folder} is not finished; run `sfumato train --run {folder}` again to resume it"
        )
    path = folder / "model.safetensors"
    tensors, meta = checkpoint.load(path)
    try:
        config = TrainConfig.from_dict(meta["config"])
        blank = _blank(meta["image_shape"], meta["classes"])
        size = sum(tensor.numel() for tensor in tensors.values())
        model = build_model(config, blank, build_defenses(config, blank.num_classes), most=_PRUNED * size)
        fit_to_state(model, tensors)
        model.load_state_dict(dict(tensors))
        _check_values(model, tensors, blank.image_shape)
        if model.channel.noise.white and config.noise_std and config.noise_shape != "white":
            raise ValueError(f"noise of shape {config.noise_shape} is missing")
    except (RuntimeError, ConfigError, DataError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds another model than its settings say ({first_line(error)}); train the run again"
        ) from error
    return Run(config, model.to(device).eval(), _result(folder / "result.json"), folder)


def _check_values(model: SplitModel, tensors: dict[str, Tensor], image_shape: tuple[int, ...]) -> None:
    """What `load_state_dict` does not look at: it converts types, and knows no noise."""
    for name, own in model.state_dict().items():
        if own.dtype != tensors.get(name, own).dtype:
            raise ValueError(f"{name} is {tensors[name].dtype}, not {own.dtype}")
        if not bool(own.isfinite().all()):
            raise ValueError(f"{name} is not finite")
    if not model.channel.noise.white:
        model.channel.noise.fits(math.prod(model.feature_shape(image_shape)))


def _blank(shape: Any, classes: Any) -> ImageSet:
    """An image as those that a stored model takes."""
    sides = [*shape]
    if len(sides) != 3 or not all(type(side) is int and 0 < side <= WIDEST for side in sides):
        raise ValueError(f"image_shape is {shape}")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes are {str(classes)[:50]}")
    return ImageSet(torch.zeros((1, *sides), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), tuple(classes))


def _begun(folder: Path, config: TrainConfig, sets: DataSets) -> dict[str, Any] | None:
    """Write `config.json`, or check that the folder belongs to the same run; its result where it is finished."""
    path = folder / "config.json"
    claim = {"config": config.as_dict(), "data": sets.train.fingerprint(), "caveat": sets.caveat}
    if not path.exists():
        write_json(path, claim)
        return None
    before = read_json(path)
    theirs = TrainConfig.stored(before, path)
    if theirs.identity() != config.identity():
        mine, old = config.identity(), theirs.identity()
        names = [name for name in {**old, **mine} if old.get(name) != mine.get(name)]
        changed = ", ".join(f"{name} {old.get(name, 'as usual')} -> {mine.get(name, 'as usual')}" for name in names)
        raise CheckpointError(f"{folder} holds another run ({changed}); choose another --run folder")
    if before.get("data") != claim["data"]:
        raise CheckpointError(
            f"{folder} was trained on other images than those in {config.data_dir}; choose another --run"
        )
    result = folder / "result.json"
    return _result(result) if result.exists() else None


def _result(path: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    result = read_json(path)
    try:
        for name, kind in _RESULT.items():
            check_type(name, result.get(name), kind)
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and train the run again") from None
    return result


def _write_lines(path: Path, history: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json_line(line) + "\n" for line in history))


@dataclass(frozen=True)
class Trained:
    """A trained split model with what audit and export need to know.

    Attributes:
        name: of the folder.
        kind: who wrote it.
        model: in evaluation mode, on the CPU.
        classes: names of the outputs.
        input_shape: (C, H, W) where the inputs are images.
        classifies: whether the outputs are logits of classes.
        digest: identifies the weights and the channel.
        defense: a short name such as `noise+cem`.
        setting: the defence of a run as one line, or a few words that tell models of one defence apart.
        config: settings of a run, which name its data; None where nobody says which data it was trained on.
        provenance: what made the weights, plain values.
        tokens: of a model of texts, how many tokens there are.
    """

    name: str
    kind: Literal["run", "saved"]
    model: SplitModel
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    classifies: bool
    digest: str
    defense: str
    setting: str
    config: TrainConfig | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None

    @property
    def data_options(self) -> dict[str, Any]:
        """Name, folder and limits of the data it was trained on, as far as they are known."""
        wanted = ("data", "data_dir", "size", "limit", "test_limit", "seed")
        return {} if self.config is None else {name: getattr(self.config, name) for name in wanted}


def load_trained(folder: Path) -> Trained:
    """Read a run folder or a folder of `save_split`.

    Raises:
        CheckpointError: it is neither, not finished, damaged, or of a newer version.
        ConfigError: the model takes more than one input.
    """
    for mark, read in _READERS.items():
        if (folder / mark).exists():
            return read(folder)
    raise CheckpointError(
        f"{folder} holds no trained split model (no {' and no '.join(_READERS)}); make one with `sfumato train --run "
        f"{folder}` or sfumato.save_split(model, ...)"
    )


def _read_run(folder: Path) -> Trained:
    run = load_run(folder)
    config, result = run.config, run.result
    meta = checkpoint.load(folder / "model.safetensors")[1]
    # The data's folder stays out: it says something about the machine, not about the model.
    kept = {name: value for name, value in config.as_dict().items() if name != "data_dir"}
    measured = {name: result[name] for name in ("data", "accuracy", "test_images", "evidence")}
    return Trained(
        name=folder.resolve().name,
        kind="run",
        model=run.model,
        classes=tuple(meta["classes"]),
        input_shape=tuple(meta["image_shape"]),
        classifies=True,
        digest=sha256_of(folder / "model.safetensors"),
        defense=_family(config.defense, config.noise_std) + ("+cem" if config.cem else ""),
        setting=str(config.line),
        config=config,
        provenance={"config": kept, "digest": config.digest(), **measured},
    )


def _read_saved(folder: Path) -> Trained:
    saved = read_split(folder)
    if saved.shared:
        raise ConfigError(
            f"{folder} holds a model that takes {', '.join(saved.shared)} beside its input, and audit and export hand "
            "over one input; attack it in Python with sfumato.load_split, whose methods take both (for texts "
            "token_recovery(..., shared=...)), or save a model that was cut without it"
        )
    noise_std = saved.model.channel.noise_std
    return Trained(
        name=folder.resolve().name,
        kind="saved",
        model=saved.model,
        classes=saved.class_names,
        input_shape=saved.input_shape,
        classifies=saved.task == "classes",
        digest=saved.digest,
        defense=str(saved.about.get("defense") or _family("none", noise_std)),
        setting=f"σ {noise_std:g}" + ("" if saved.model.channel.noise.white else ", shaped"),
        provenance={"saved_split": saved.digest, "about": saved.about},
        tokens=saved.tokens,
    )


def _family(defense: str, noise_std: float) -> str:
    return defense if defense != "none" else ("noise" if noise_std else "none")


_READERS: dict[str, Callable[[Path], Trained]] = {"config.json": _read_run, SPLIT: _read_saved}
