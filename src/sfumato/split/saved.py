"""A split model of anybody's modules in a folder: two programs and a description, for audit, export and loading again.

edge.pt2     encoder: inputs -> feature before clip and noise, evaluation mode, float32, any batch size
cloud.pt2    decoder: released feature -> outputs
split.json   channel, shapes, preprocessing, names of the classes, SHA-256 of the programs; written last

Nothing in it is unpickled. The hashes find damage, not forgery: load folders of people you trust.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sfumato.errors import CheckpointError
from sfumato.split.channel import Channel
from sfumato.split.model import SplitModel
from sfumato.split.programs import load_program

__all__ = ["CHANNEL", "CLOUD", "EDGE", "FORMAT", "SPLIT", "SavedSplit", "Task", "load_split", "read_split", "sha256"]

FORMAT = 1
SPLIT = "split.json"
EDGE, CLOUD = "edge.pt2", "cloud.pt2"
CHANNEL = ("noise_std", "clip_norm", "quantize_bits", "low", "high")
_LARGEST = 16 << 20  # bytes of a description

Task = Literal["classes", "values"]


@dataclass(frozen=True)
class SavedSplit:
    """A saved split model, read back.

    Attributes:
        model: in evaluation mode; takes inputs in [0, 1] where they are images. It cannot be trained further.
        input_shape: of one input, without the batch.
        class_names: names of the outputs.
        task: `classes` where the outputs are logits of classes, `values` where they are not.
        about: what the saver wrote down, plain values.
        digest: SHA-256 over both programs and the channel.
        folder: where it lies.
    """

    model: SplitModel
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    task: Task
    about: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    folder: Path = Path()


def load_split(folder: str | Path, *, device: torch.device | str = "cpu") -> SplitModel:
    """The split model that `save_split` wrote, in evaluation mode; it can be run and attacked, not trained.

    Raises:
        CheckpointError: the folder holds none, or it is damaged, changed, or of a newer version.
    """
    return read_split(folder).model.to(device)


def read_split(folder: str | Path) -> SavedSplit:
    """`load_split` with everything that the folder says.

    Raises:
        CheckpointError: the folder holds none, or it is damaged, changed, or of a newer version.
    """
    folder = Path(folder)
    value = _description(folder / SPLIT)
    version = value.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{folder / SPLIT} is no description of a split model; save it again with save_split")
    if version > FORMAT:
        raise CheckpointError(
            f"{folder / SPLIT} has format {version}, this version reads up to {FORMAT}; upgrade sfumato"
        )
    try:
        shape = tuple(int(size) for size in value["input"]["shape"])
        names = tuple(str(name) for name in value["class_names"])
        task: Task = value["task"]
        channel = Channel(**{key: value["channel"][key] for key in CHANNEL})
        files = {part: str(value["files"][part]) for part in (EDGE, CLOUD)}
        about = dict(value["about"])
        if task not in ("classes", "values") or not shape or min(shape) < 1:
            raise ValueError("a value has no meaning")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / SPLIT} is damaged ({error!r}); save the model again") from error
    for part, expected in files.items():
        if not (folder / part).is_file() or sha256(folder / part) != expected:
            raise CheckpointError(
                f"{folder / part} is missing or not the file that {SPLIT} describes; copy the whole folder again, or "
                "save the model again"
            )
    model = SplitModel(load_program(folder / EDGE), channel, load_program(folder / CLOUD)).eval()
    digest = hashlib.sha256(json.dumps([value["channel"], files], sort_keys=True).encode()).hexdigest()
    return SavedSplit(model, shape, names, task, about, digest, folder)


def _description(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            data = handle.read(_LARGEST + 1)
        value = json.loads(data) if len(data) <= _LARGEST else None
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} holds no saved split model (no {path.name}); make one with sfumato.save_split(model, ...)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); save the model again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (no JSON object); save the model again")
    return value


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
