"""A split model of anybody's modules in a folder: two programs and a description, for audit, export and loading again.

edge.pt2     encoder: inputs -> feature before clip and noise, evaluation mode, float32, any batch size
cloud.pt2    decoder: released feature -> outputs
README.md    the model card, unless there is another
noise.f32    the numbers of noise with a shape; only where it has one
split.json   channel, shapes, preprocessing, names of the classes, SHA-256 of the programs; written last

Opening a saved split runs its programs. The hashes find damage, not forgery: load folders of people you trust. Folders
that this user wrote on this machine are recognised by a mark (`made_here`); `sfumato audit` opens others with --trust.
"""

import contextlib
import hashlib
import hmac
import inspect
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import sfumato
from sfumato.errors import CheckpointError, ConfigError, first_line
from sfumato.files import read_json, sha256_of, unwritable, write_atomic, write_json, write_text
from sfumato.model_card import model_card
from sfumato.noise import Noise
from sfumato.split.channel import Channel
from sfumato.split.model import SplitModel
from sfumato.split.programs import compare, load_program, random_inputs, rows, save_program
from sfumato.torch_utils import evaluating

__all__ = ["SPLIT", "SavedSplit", "Task", "load_split", "made_here", "read_split", "save_split"]

SPLIT = "split.json"
_FORMAT = 1
_EDGE, _CLOUD, _CARD = "edge.pt2", "cloud.pt2", "README.md"
_CHANNEL = ("noise_std", "clip_norm", "quantize_bits", "low", "high")
_NOISE = "noise.f32"
_LOUDEST = 1e6  # standard deviation of a noise; with far more a sum is infinite

Task = Literal["classes", "values"]


@dataclass(frozen=True)
class SavedSplit:
    """A saved split model, read back."""

    model: SplitModel  # in evaluation mode; takes inputs in [0, 1] where they are images. It cannot be trained further
    input_shape: tuple[int, ...]  # of one input, without the batch
    class_names: tuple[str, ...]  # of the outputs
    task: Task  # `classes` where the outputs are logits of classes, `values` where they are not
    about: dict[str, Any]  # what the saver wrote down, plain values
    digest: str  # SHA-256 over both programs and the channel
    tokens: int | None  # of a model of texts, how many there are: its inputs are whole numbers below it
    shared: tuple[str, ...]  # names of what both halves take beside their input, such as an attention mask


def load_split(folder: str | Path, *, device: torch.device | str = "cpu") -> SplitModel:
    """The split model that `save_split` wrote, in evaluation mode; it can be run and attacked, not trained.

    Raises:
        CheckpointError: the folder holds none, or it is damaged, changed, or of a newer version.

    >>> import tempfile
    >>> x = torch.ones(2, 1, 2, 2)
    >>> model = SplitModel(torch.nn.Sigmoid(), Channel(noise_std=0.1), torch.nn.Flatten())
    >>> load_split(save_split(model, tempfile.mkdtemp(), example_input=x)).channel.noise_std
    0.1
    """
    return read_split(folder).model.to(device)


def read_split(folder: str | Path) -> SavedSplit:
    """`load_split` with everything that the folder says."""
    folder = Path(folder)
    if not (folder / SPLIT).exists():
        raise CheckpointError(
            f"{folder} holds no saved split model (no {SPLIT}); make one with sfumato.save_split(model, ...)"
        )
    value = read_json(folder / SPLIT, remedy="save the model again")
    version = value.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{folder / SPLIT} is no description of a split model; save it again with save_split")
    if version > _FORMAT:
        raise CheckpointError(
            f"{folder / SPLIT} has format {version}, this version reads up to {_FORMAT}; upgrade sfumato"
        )
    try:
        shape = tuple(int(size) for size in value["input"]["shape"])
        tokens = None if value["input"].get("tokens") is None else int(value["input"]["tokens"])
        shared = tuple(str(name) for name in value["input"].get("shared", ()))
        names = tuple(str(name) for name in value["class_names"])
        task: Task = value["task"]
        channel = Channel(**{key: value["channel"][key] for key in _CHANNEL})
        rank = value["channel"].get("noise_rank")
        files = {part: str(value["files"][part]) for part in (_EDGE, _CLOUD, *[_NOISE] * (rank is not None))}
        about = dict(value["about"])
        feature = math.prod(int(size) for size in value["feature"]["shape"])
        if task not in ("classes", "values") or not shape or min(shape) < 1 or channel.noise_std > _LOUDEST:
            raise ValueError("a value has no meaning")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / SPLIT} is damaged ({error!r}); save the model again") from error
    for part, expected in files.items():
        if not (folder / part).is_file() or sha256_of(folder / part) != expected:
            raise CheckpointError(
                f"{folder / part} is missing or not the file that {SPLIT} describes; copy the whole folder again, or "
                "save the model again"
            )
    if rank is not None:
        try:
            channel.noise = Noise.from_bytes((folder / _NOISE).read_bytes(), int(rank))
            channel.noise.fits(feature)
        except (ConfigError, OverflowError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / _NOISE} is damaged ({error}); save the model again") from error
    edge, cloud = (load_program(folder / part, shared) for part in (_EDGE, _CLOUD))
    model = SplitModel(edge, channel, cloud).eval()
    digest = hashlib.sha256(json.dumps([value["channel"], files], sort_keys=True).encode()).hexdigest()
    return SavedSplit(model, shape, names, task, about, digest, tokens, shared)


class _Edge(nn.Module):
    """What is recorded as the encoder: preprocessing, encoder, the channel's deterministic transforms."""

    def __init__(self, model: SplitModel, normalize: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.edge = model.edge
        self.transforms = nn.Sequential(*model.channel.transforms)
        self.shift: Tensor | None
        self.scale: Tensor | None
        self.register_buffer("shift", None if normalize is None else normalize[0])
        self.register_buffer("scale", None if normalize is None else normalize[1])

    def forward(self, x: Tensor, **shared: Tensor) -> Tensor:
        if self.shift is not None and self.scale is not None:
            x = (x - self.shift) / self.scale
        made: Tensor = self.transforms(self.edge(x, **shared))
        return made


def save_split(
    model: SplitModel,
    folder: str | Path,
    *,
    example_input: Tensor,
    example_kwargs: Mapping[str, Tensor] | None = None,
    class_names: Sequence[str] | None = None,
    task: Task = "classes",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Write a split model of your own modules so that `sfumato audit`, `sfumato export` and `load_split` take it.

    A model of texts takes tokens: `example_input` (N, L) of whole numbers, whose largest and the sizes of the encoder's
    embeddings say how many there are. `sfumato.attacks.tokens.token_recovery` measures what is read from its feature.

    Both halves are recorded by `torch.export` in evaluation mode for batches of any size, read back and compared with
    the model before anything in the folder is replaced. Of `example_input` only the shape is used for the recording,
    and no value is stored. The model stays as it is.

    Args:
        model: the split model; a random transform in its channel cannot be recorded.
        folder: made if it is missing; an older split model there is replaced, other files are left alone.
        example_input: (N, ...) inputs as the model's forward takes them, N >= 1.
        example_kwargs: tensors with N rows that both halves get by name, such as the attention mask that the model was
            cut with; the loaded model takes them by the same names. `sfumato audit` and `sfumato export` take models
            of one input.
        class_names: names of the outputs, in their order; "0", "1", ... where they have none.
        task: `values` where the outputs are not logits of classes (regression), so that no accuracy is measured.
        normalize: (mean, std) per channel, if your loop passes `(x - mean) / std` for images x in [0, 1]: the saved
            encoder then takes x and does that itself.
        about: what should be remembered, values that JSON knows.

    Returns:
        The folder.

    Raises:
        ConfigError: the model cannot be recorded, a recorded half computes something else than the module, or an
            argument has no meaning.
        StorageError: the folder cannot be written.

    >>> import tempfile
    >>> model = SplitModel(torch.nn.Sigmoid(), Channel(), torch.nn.Flatten())
    >>> folder = save_split(model, tempfile.mkdtemp(), example_input=torch.ones(2, 1, 2, 2))
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'cloud.pt2', 'edge.pt2', 'split.json']
    """
    folder = Path(folder)
    if not isinstance(model, SplitModel):
        raise ConfigError(f"model is a {type(model).__name__}; save a sfumato.SplitModel(edge, channel, cloud)")
    if not isinstance(example_input, Tensor) or example_input.ndim < 2 or len(example_input) == 0:
        raise ConfigError("example_input must be a batch (N, ...) of inputs that the model takes, with N of at least 1")
    if random := model.channel.stochastic_transforms:
        raise ConfigError(
            f"the channel's {type(random[0]).__name__} draws random numbers, which a recorded program must not do; "
            "train this defence with `sfumato train`, whose run folders keep it, or leave it out"
        )
    if task not in ("classes", "values"):
        raise ConfigError(f"task is {task!r}; choose one of classes, values")
    shape, tokens, vocabulary = tuple(example_input.shape[1:]), None, None
    if not example_input.is_floating_point():
        tokens = int(example_input.max()) + 1  # what is sure to be one
        vocabulary = max([tokens, *(e.num_embeddings for e in model.edge.modules() if isinstance(e, nn.Embedding))])
    edge = _Edge(model, None if normalize is None else _per_channel(normalize, shape))
    shared = _beside(model, example_input, dict(example_kwargs or {}))
    try:
        with evaluating(model):
            first = {name: part[:1] for name, part in shared.items()}
            out = model.outputs(example_input[:1], torch.Generator().manual_seed(0), **first)
    except ConfigError:
        raise
    except Exception as error:  # the user's model on the user's example
        raise ConfigError(f"the model does not run on the example input: {first_line(error)}") from error
    if out.logits.ndim != 2:
        raise ConfigError(f"the cloud gives {tuple(out.logits.shape)}, but a server answers (N, outputs); flatten it")
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(out.logits.shape[1])))
    if len(names) != out.logits.shape[1] or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{len(names)} class_names for {out.logits.shape[1]} outputs; give one text for each")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(prefix=".split.", suffix=".tmp", dir=folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    with aside as name:
        fresh = Path(name)
        example, feature = random_inputs(2, shape, 0, tokens), random_inputs(2, tuple(out.released.shape[1:]), 0)
        beside = {name: rows(part.cpu(), 2) for name, part in shared.items()}
        save_program(edge, example, fresh / _EDGE, "encoder", beside)
        save_program(model.cloud, feature, fresh / _CLOUD, "decoder", beside)
        compare(("encoder", edge, fresh / _EDGE), ("decoder", model.cloud, fresh / _CLOUD), shape, tokens, shared)
        channel: dict[str, Any] = {key: getattr(model.channel, key) for key in _CHANNEL}
        if not (noise := model.channel.noise).white:
            (fresh / _NOISE).write_bytes(noise.array(out.released[0].numel()).tobytes())
            channel["noise_rank"] = noise.rank
        files = {path.name: sha256_of(path) for path in sorted(fresh.iterdir())}
        value = {
            "format": _FORMAT,
            "input": {
                "shape": list(shape),
                "normalize": None if normalize is None else [list(i) for i in normalize],
                "tokens": vocabulary,
                "shared": list(shared),
            },
            "feature": {"shape": list(out.released.shape[1:])},
            "channel": channel,
            "task": task,
            "class_names": list(names),
            "about": about or {},
            "files": files,
            "versions": {"sfumato": sfumato.__version__, "torch": str(torch.__version__)},
        }
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"about holds something that JSON does not know ({error}); give plain values") from None
        for part in files:
            write_atomic(folder / part, partial(shutil.copyfile, fresh / part))
    if (key := _own_key(make=True)) is not None:
        value["made_here"] = _mark(key, files)
    write_json(folder / SPLIT, value)
    card = folder / _CARD
    if not card.exists() or "library_name: sfumato" in card.read_text(encoding="utf-8", errors="replace"):
        write_text(card, model_card(folder.resolve().name, channel=channel, input_shape=shape,
                                    classes=names if task == "classes" else (),
                                    training=about or {}, audit=None))  # fmt: skip
    return folder


def made_here(folder: str | Path) -> bool:
    """Whether `save_split` wrote this folder for this user on this machine, and its programs are still those.

    The description carries a code over the programs' digests under a secret key of the user's, which nobody else can
    make. Where the folder was copied from elsewhere, or the key is gone, the answer is no.
    """
    folder = Path(folder)
    try:
        value = read_json(folder / SPLIT)
        files = {part: sha256_of(folder / part) for part in value["files"]}
        key = _own_key(make=False)
        return key is not None and hmac.compare_digest(str(value.get("made_here")), _mark(key, files))
    except (CheckpointError, OSError, KeyError, TypeError):
        return False


def _mark(key: bytes, files: dict[str, str]) -> str:
    return hmac.new(key, json.dumps(files, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _own_key(*, make: bool) -> bytes | None:
    """The secret of this user on this machine, made once; None where there is none, or no place for it."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(base) / "sfumato" / "made-here.key"
    try:
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))  # FileExistsError: another process was faster
        key = path.read_bytes()
    except (OSError, RuntimeError):
        return None
    return key if len(key) == 32 else None


def _per_channel(normalize: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    try:
        mean, std = (torch.as_tensor(part, dtype=torch.float32).flatten() for part in normalize)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"normalize is no (mean, std) ({error}); give two lists, one number per channel") from None
    fits = len(mean) == len(std) and len(mean) in (1, shape[0])
    if not (fits and bool(torch.isfinite(mean).all()) and bool((std > 0).all()) and math.isfinite(float(std.sum()))):
        raise ConfigError(
            f"normalize must hold {shape[0]} (or 1) finite means and as many positive standard deviations"
        )
    view = (-1, *(1,) * (len(shape) - 1))
    return mean.reshape(view), std.reshape(view)


def _beside(model: SplitModel, x: Tensor, shared: dict[str, Tensor]) -> dict[str, Tensor]:
    """What both halves get beside their input, checked; floating point as float32."""
    for name, part in shared.items():
        if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != len(x):
            raise ConfigError(
                f"example_kwargs[{name!r}] must be a tensor with a row for each of the {len(x)} rows of example_input; "
                "give split_at what is no tensor"
            )
    for half in (model.edge, model.cloud):
        others = list(inspect.signature(half.forward).parameters.values())[1:]
        needed = [
            p.name for p in others if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if missing := [name for name in needed if name not in shared]:
            raise ConfigError(
                f"the model takes {', '.join(missing)} beside its input; give an example of each with "
                "example_kwargs={...}"
            )
    return {name: part.float() if part.is_floating_point() else part for name, part in shared.items()}
