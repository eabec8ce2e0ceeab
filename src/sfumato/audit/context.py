"""What all pieces of one audit share: the subject, the attacker's images, what left the device, the time and memory."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from sfumato.attacks import Observer
from sfumato.audit.folder import AuditFolder
from sfumato.audit.images import shuffled
from sfumato.audit.measure import Exposure, expose
from sfumato.audit.subject import Subject
from sfumato.data import DataSets, ImageSet
from sfumato.errors import SfumatoError
from sfumato.seeds import derive_seed
from sfumato.split import SplitModel

MOST_IMAGES = 2000
"""At most so many training and test images, drawn at random, are reconstructed by every attack."""

Stop = Callable[[], bool]
"""Asked often by whoever works: True saves and leaves."""

_MEMORY_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


@dataclass(frozen=True)
class Context:
    """One audit's common ground."""

    subject: Subject
    sets: DataSets
    train: Exposure
    test: Exposure
    gradients: bool
    device: torch.device
    seed: int
    folder: AuditFolder
    other: ImageSet | None = None

    def observer(self, images: ImageSet | None = None) -> Observer:
        """What an attacker with these images (all, if not said) may see."""
        return self._worst if images is None else Observer(self.subject.model, images, device=self.device)

    @cached_property
    def _worst(self) -> Observer:
        """One for all pieces, so that features and their whitening are computed once."""
        return Observer(self.subject.model, self.sets.train, device=self.device)


def make_context(
    subject: Subject,
    sets: DataSets,
    *,
    gradients: bool,
    device: torch.device,
    seed: int,
    folder: AuditFolder,
    most: int = MOST_IMAGES,
    other: ImageSet | None = None,
) -> Context:
    """Draw the samples, of at most `most` images each, and release their features."""
    train, test = (
        expose(
            subject.model,
            shuffled(images, most, seed, part),
            seed=derive_seed(seed, "audit", part),
            device=device,
        )
        for part, images in (("train", sets.train), ("test", sets.test))
    )
    return Context(subject, sets, train, test, gradients, device, seed, folder, other)


class TimeBudget:
    """Keeps a budget of seconds over all calls, of which earlier ones have spent some; `reserve` is for the end.

    >>> TimeBudget(100.0, spent=95.0, reserve=10.0).left
    0.0
    """

    def __init__(self, seconds: float, spent: float, reserve: float) -> None:
        self._zero = time.monotonic() - spent
        self.end = self._zero + seconds - reserve

    @property
    def spent(self) -> float:
        """Seconds, over all calls."""
        return time.monotonic() - self._zero

    @property
    def left(self) -> float:
        """Seconds until the pieces have to be done."""
        return max(0.0, self.end - time.monotonic())


class TooLate(SfumatoError):
    """What was begun in good time, and is given up."""


@contextmanager
def limited(model: SplitModel, limit: float, should_stop: Stop | None = None) -> Iterator[Stop]:
    """Inside, whoever calls the encoder or the cloud after `limit`, or asks the `Stop`, ends with TooLate.

    Every attack does one or the other at least every few seconds, whether or not it knows of deadlines: one in closed
    form reads its images batch by batch, and what it reconstructs is measured batch by batch.
    """

    def ask(*_: object) -> None:
        if time.monotonic() > limit:
            raise TooLate("its time was over before it was done: give more --minutes")

    def stop() -> bool:
        ask()
        return should_stop is not None and should_stop()

    hooks = [half.register_forward_pre_hook(ask) for half in (model.edge, model.cloud)]
    try:
        yield stop
    finally:
        for hook in hooks:
            hook.remove()


def available_memory(device: torch.device) -> float:
    """Bytes that are free: of the GPU, or of this machine within the limit of its container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass  # no Linux: nothing is known, and nothing declined
    for limit, used in _MEMORY_FILES:
        try:
            most, now = (int((Path("/sys/fs/cgroup") / name).read_text(encoding="ascii")) for name in (limit, used))
            found.append(float(most - now))
        except (OSError, ValueError):
            continue  # no such control group, or "max"
    return min(found, default=math.inf)
