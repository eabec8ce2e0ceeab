"""What a worker does with one experiment, on whatever machine it runs."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato import defenses
from sfumato.errors import Interrupted, SfumatoWarning
from sfumato.experiments.experiment import Experiment, run_experiment
from sfumato.experiments.store import Store
from sfumato.files import write_json

__all__ = ["Assignment", "do"]

_TELL_SECONDS = 1.0


@dataclass(frozen=True)
class Assignment:
    """An experiment and where it is to be done.

    Attributes:
        experiment: with data and device of the worker's machine.
        results: folder of the store.
        work: folder of the checkpoints; a subfolder per experiment.
        deadline: `time.time()` after which it saves and leaves; None: no limit.
        plugins: files to run first, which register defences.
        pictures: whether to keep a picture of reconstructed images beside the result.
        keep: whether the trained model stays in the work folder.
    """

    experiment: Experiment
    results: Path
    work: Path
    deadline: float | None = None
    plugins: tuple[str, ...] = ()
    pictures: bool = True
    keep: bool = False

    @property
    def store(self) -> Store:
        """The store; its locks lie with the checkpoints, not with the results."""
        return Store(self.results, locks=self.work / "locks")

    @property
    def progress(self) -> Path:
        """File in which the worker says how far it is."""
        return self.work / f"{self.experiment.key}.progress"


def do(assignment: Assignment) -> str:
    """Do one experiment and store its result; says `done`, `found` (somebody else had done it) or `busy`.

    Raises:
        Interrupted: the deadline passed; the same assignment goes on from the checkpoint.
    """
    _load_plugins(assignment.plugins)
    key, store = assignment.experiment.key, assignment.store
    with store.claim(key) as mine:
        if not mine:
            return "busy"
        if store.read(key) is not None:
            return "found"
        last = 0.0

        def tell(what: str, share: float) -> None:
            nonlocal last
            if time.monotonic() - last >= _TELL_SECONDS:
                last = time.monotonic()
                write_json(assignment.progress, {"what": what, "share": share})

        def late() -> bool:
            return assignment.deadline is not None and time.time() >= assignment.deadline

        if late():
            raise Interrupted("no time is left")
        picture = store.folder / f"{key}.png" if assignment.pictures else None
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", SfumatoWarning)
                result = run_experiment(
                    assignment.experiment,
                    assignment.work / key,
                    should_stop=late,
                    progress=tell,
                    pictures=picture,
                    keep=assignment.keep,
                )
        finally:
            assignment.progress.unlink(missing_ok=True)
        said = {str(one.message): None for one in caught if issubclass(one.category, SfumatoWarning)}
        store.write(key, result | {"warnings": list(said)})
        return "done"


def _load_plugins(plugins: Sequence[str]) -> None:
    for plugin in plugins:
        defenses.load_plugin(plugin)
