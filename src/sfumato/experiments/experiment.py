"""One experiment of the tables: a training and its attacks, decided by a value, run in a folder, resumed there."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sfumato import attacks
from sfumato.attacks import DecoderConfig, GanConfig, measure_leakage
from sfumato.compute import device_of
from sfumato.experiments.strips import write_strip
from sfumato.training import TrainConfig, load_data, load_run, train_run
from sfumato.training.config import CEM_VERSION
from sfumato.training.inversion import attack_suite

__all__ = ["Experiment", "Progress", "run_experiment"]

Progress = Callable[[str, float], None]
"""`(what, share done)` while an experiment runs."""

_SHOWN = 8


@dataclass(frozen=True)
class Experiment:
    """What one result file stands for.

    Attributes:
        budget: name of the budget.
        dataset: as the table names it; `train.data` may be a stand-in.
        row: name of the row.
        train: settings of the training.
        attacks: settings of the attacks, in the order in which they run.
    """

    budget: str
    dataset: str
    row: str
    train: TrainConfig
    attacks: tuple[DecoderConfig | GanConfig, ...]

    def identity(self, cem_version: int = CEM_VERSION) -> dict[str, Any]:
        """Everything that decides the result; see `TrainConfig.identity`."""
        return {
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

    def _named(self, digest: str) -> str:
        cem = "-cem" if self.train.cem else ""
        return f"{self.dataset}-{self.row}{cem}-s{self.train.seed}-{digest[:12]}"

    def located(self, data_dir: str | None, device: str) -> "Experiment":
        """The same experiment with its data and device on this machine."""
        return replace(self, train=replace(self.train, data_dir=data_dir, device=device))


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    progress: Progress | None = None,
    pictures: Path | None = None,
    keep: bool = False,
) -> dict[str, Any]:
    """Train and attack in `folder`, from where an earlier call was interrupted; give the result.

    Args:
        experiment: what to do.
        folder: of checkpoints; removed at the end unless `keep`.
        should_stop: asked at every step; True saves and leaves.
        progress: called as the work goes on.
        pictures: PNG file for originals and reconstructions; None draws none.
        keep: whether the trained model stays in the folder.

    Raises:
        Interrupted: `should_stop` said so.
    """
    tell = progress or (lambda what, share: None)
    sets = load_data(experiment.train)
    names = [attacks.name_of(config) for config in attacks.with_closed_forms(*experiment.attacks)]

    def on_step(done: int, total: int) -> None:
        tell("training", done / total / (1 + len(names)))

    unwatched = replace(experiment.train, watch=False)  # nobody looks, and the result says it all
    trained = train_run(unwatched, folder, sets=sets, on_step=on_step, should_stop=should_stop)
    run = load_run(folder)
    began = time.monotonic()

    def on_epoch(name: str, done: int, total: int, _: dict[str, float]) -> None:
        tell(name, (1 + names.index(name) + done / total) / (1 + len(names)))

    suite = attack_suite(
        run,
        sets,
        experiment.attacks,
        device=device_of(experiment.train.device),
        progress=on_epoch,
        should_stop=should_stop,
    )
    leakage = measure_leakage(run.model, sets.test, seed=experiment.train.seed).as_dict()
    if pictures is not None:
        strip = {"original": next(iter(suite.attacks.values())).originals}
        strip |= {name: attacked.test.images for name, attacked in suite.attacks.items()}
        write_strip(pictures, {name: images[:_SHOWN] for name, images in strip.items()})
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "hash": experiment.digest,
        "budget": experiment.budget,
        "dataset": experiment.dataset,
        "row": experiment.row,
        "cem": experiment.train.cem,
        "seed": experiment.train.seed,
        "noise_std": experiment.train.noise_std,
        "lam": experiment.train.lam if experiment.train.cem else 0.0,
        "cut": experiment.train.cut_at,
        "network": experiment.train.network,
        **{name: trained[name] for name in _FROM_TRAINING},
        "attacks": suite.figures(),
        "strongest": suite.strongest,
        "leakage": leakage,
        "attack_seconds": round(time.monotonic() - began, 1),
        "config": experiment.identity(),
    }


_FROM_TRAINING = (
    "accuracy",
    "accuracy_held_out",
    "information",
    "information_bounds",
    "train_images",
    "test_images",
    "caveat",
    "seconds",
    "data",
    "evidence",
)
