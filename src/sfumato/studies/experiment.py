"""One experiment: a training and its attacks, decided by a value, done in a folder, with a picture beside it."""

import hashlib
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import attacks, data
from sfumato.attacks import DecoderConfig, GanConfig, measure_leakage
from sfumato.compute import device_of
from sfumato.data import DataSets
from sfumato.errors import DataError
from sfumato.files import write_atomic
from sfumato.studies.engine import Store, Trial, Workspace, missing
from sfumato.training import TrainConfig, load_data, load_run, train_run
from sfumato.training.config import CEM_VERSION
from sfumato.training.inversion import attack_suite


def write_strip(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Rows of images (n, C, H, W) in [0, 1], all of one shape, without gaps, as a PNG that knows its rows' names."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    count, channels, height, width = next(iter(rows.values())).shape
    grid = torch.stack(list(rows.values())).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = grid.permute(0, 3, 1, 4, 2).reshape(len(rows) * height, count * width, channels)
    info = PngInfo()
    info.add_text("rows", "\n".join(rows))
    info.add_text("columns", str(count))
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(buffer, "PNG", pnginfo=info, optimize=True)
    write_atomic(path, partial(Path.write_bytes, data=buffer.getvalue()))


def read_strip(path: Path) -> dict[str, Tensor] | None:
    """What `write_strip` wrote, as images in [0, 1] by row; None where there is none or it is damaged."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            names, columns = str(picture.info["rows"]).split("\n"), int(picture.info["columns"])
            pixels = torch.from_numpy(np.array(picture))
    except (OSError, KeyError, ValueError):  # one that is no picture at all is an OSError, too
        return None
    height, width = pixels.shape[0] // len(names), pixels.shape[1] // columns
    grid = pixels.reshape(len(names), height, columns, width, -1).permute(0, 2, 4, 1, 3).float() / 255
    return dict(zip(names, grid, strict=True))


FOLDS = 5
_FOLDERS = {
    "cifar10": ("cifar10", "cifar-10"),
    "cifar100": ("cifar100", "cifar-100"),
    "tinyimagenet": ("tinyimagenet", "tiny-imagenet-200"),
    "facescrub": ("facescrub", "FaceScrub"),
}
PICTURE = "reconstructed.png"
_FROM_TRAINING = (
    *("accuracy", "accuracy_held_out", "information", "information_bounds", "train_images", "test_images"),
    *("caveat", "seconds", "data", "evidence"),
)


@dataclass(frozen=True)
class Experiment(Trial):
    """What one result file stands for.

    Attributes:
        budget: name of the budget.
        dataset: as the table names it; `train.data` may be a stand-in.
        row: name of the row.
        train: settings of the training.
        attacks: settings of the attacks, in the order in which they run; those in closed form run beside them.
        fold: which of `FOLDS` parts of all images is the test set; None takes the standard split.
        folder: of the run, which is left as `sfumato train` leaves one, with a picture in it; None keeps none.
        keep: whether the run stays in the folder of the checkpoints, where `folder` is None.
        shown: images in the picture.
    """

    budget: str
    dataset: str
    row: str
    train: TrainConfig
    attacks: tuple[DecoderConfig | GanConfig, ...]
    fold: int | None = None
    folder: str | None = None
    keep: bool = False
    shown: int = 8

    def identity(self, cem_version: int = CEM_VERSION) -> dict[str, Any]:
        """Everything that decides the result; see `TrainConfig.identity`."""
        folds = {} if self.fold is None else {"fold": self.fold, "folds": FOLDS}
        return folds | {
            "budget": self.budget,
            "dataset": self.dataset,
            "row": self.row,
            "train": self.train.identity(cem_version),
            "attacks": {attacks.name_of(config): asdict(config) for config in self.attacks},
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return _digest(self.identity())

    @property
    def key(self) -> str:
        """Name of the result: readable in front, unmistakable behind."""
        return self._named(self.digest)

    @property
    def older_key(self) -> str:
        """The name that this result had when CEM was in its first version."""
        return self._named(_digest(self.identity(cem_version=1)))

    @property
    def complete(self) -> bool:
        """Whether the run that it should leave is there."""
        return self.folder is None or all((Path(self.folder) / name).exists() for name in ("result.json", PICTURE))

    def measure(self, workspace: Workspace) -> dict[str, Any]:
        """Train and attack; see `Trial.measure`."""
        folder = workspace.folder if self.folder is None else Path(self.folder)
        sets = self._sets()
        stages = ["training", *map(attacks.name_of, attacks.with_closed_forms(*self.attacks))]

        def tell(what: str, done: float, total: float, *_: Any) -> None:
            workspace.tell(what, (stages.index(what) + done / total) / len(stages))

        unwatched = replace(self.train, watch=False)  # nobody looks, and the result says it all
        device, stop = device_of(self.train.device), workspace.should_stop
        trained = train_run(unwatched, folder, sets=sets, on_step=partial(tell, "training"), should_stop=stop)
        run, began = load_run(folder), time.monotonic()
        suite = attack_suite(run, sets, self.attacks, device=device, progress=tell, should_stop=stop)
        leakage = measure_leakage(run.model, sets.test, seed=self.train.seed).as_dict()
        strip = {"original": next(iter(suite.attacks.values())).originals}
        strip |= {name: attacked.test.images for name, attacked in suite.attacks.items()}
        picture = workspace.picture if self.folder is None else folder / PICTURE
        write_strip(picture, {name: images[: self.shown] for name, images in strip.items()})
        if self.folder is None and not self.keep:
            shutil.rmtree(folder, ignore_errors=True)
        return {
            "hash": self.digest,
            **{name: getattr(self, name) for name in ("budget", "dataset", "row")},
            **{name: getattr(self.train, name) for name in ("cem", "seed", "noise_std", "network")},
            "lam": self.train.lam if self.train.cem else 0.0,
            "cut": self.train.cut_at,
            **{name: trained[name] for name in _FROM_TRAINING},
            "attacks": suite.figures(),
            "strongest": suite.strongest,
            "leakage": leakage,
            "attack_seconds": round(time.monotonic() - began, 1),
            "config": self.identity(),
        }

    def _named(self, digest: str) -> str:
        cem = "-cem" if self.train.cem else ""
        return f"{self.dataset}-{self.row}{cem}-s{self.train.seed}-{digest[:12]}"

    def _sets(self) -> DataSets:
        sets = load_data(self.train)
        if self.fold is None:
            return sets
        train, test = sets.train, sets.test
        whole = replace(
            train, images=torch.cat([train.images, test.images]), labels=torch.cat([train.labels, test.labels])
        )
        train, test = data.folds(whole, FOLDS, 0)[self.fold]
        return replace(sets, train=train, test=test)


def located(
    experiments: Sequence[Experiment], store: Store, *, data_dir: str | None, device: str, keep: bool = False
) -> list[Experiment]:
    """The same experiments with data (a folder, or one with a folder per data set) and device of this machine.

    What is needed is loaded once: a missing data set is one sentence, not one per worker, and results of other images
    never stand beside new ones.
    """
    loaded: dict[tuple[str, int | None], DataSets] = {}
    wanted = {(one.train.data, one.train.size) for one in missing(experiments, store) if isinstance(one, Experiment)}
    found = []
    for one in experiments:
        train, source = one.train, (one.train.data, one.train.size)
        folder = _data_folder(data_dir, train.data)
        found.append(replace(one, train=replace(train, data_dir=folder, device=device), keep=keep))
        if source not in wanted:
            continue
        if source not in loaded:
            loaded[source] = data.load(train.data, folder, seed=0, size=train.size)
        if one.fold is None and (result := store.read(one.key)) is not None:
            mine = loaded[source].train
            mine = mine if train.limit is None else data.limit(mine, train.limit, train.seed)
            if result["data"] != mine.fingerprint():
                where = "the ones loaded here" if folder is None else f"those in {folder}"
                raise DataError(
                    f"{store.path(one.key)} was measured on other images than {where}; choose another --results folder "
                    "for these"
                )
    return found


def _data_folder(base: str | None, dataset: str) -> str | None:
    """Where a data set lies: the folder of its name in `base`, or `base` itself."""
    if base is None:
        return None
    root = Path(base).expanduser().resolve()
    return str(next((root / name for name in _FOLDERS.get(dataset, ()) if (root / name).is_dir()), root))


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
