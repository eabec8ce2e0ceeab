"""What a folder with a trained split model says about it, whoever wrote the folder: `sfumato train` or `save_split`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfumato import checkpoint
from sfumato.errors import CheckpointError, ConfigError
from sfumato.files import sha256_of
from sfumato.split import SplitModel
from sfumato.split.saved import SPLIT, read_split
from sfumato.training.config import TrainConfig
from sfumato.training.run import load_run

__all__ = ["Trained", "load_trained"]


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
