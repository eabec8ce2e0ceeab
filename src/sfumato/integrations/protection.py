"""What every integration does: refresh the mixture, weigh the loss of each batch, see that it arrives, resume.

The batches of a refresh never come from the iterator or the worker processes of the steps.
"""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from sfumato.cem import CEM
from sfumato.defenses import LAMBDA, CEMDefense
from sfumato.errors import ConfigError, FeatureError
from sfumato.integrations.tap import Tap, inputs_of, labels_of
from sfumato.seeds import derive_seed
from sfumato.settings import check_type
from sfumato.torch_utils import ENOUGH_FOR_STATISTICS, exact_batch_norm, has_batch_norm

__all__ = ["SETTINGS", "Protection"]

Batches = Callable[[], Iterable[Any]]
_PLACE = "place"


class Protection:
    """CEM on the features that a tap reads; its settings are those of every integration.

    Args:
        cem: the plug-in.
        lam: lambda of Eq. 8, in the units of the plug-in's scaling.
        lam_schedule: `constant`, `ramp` or `lr_coupled`.
        features: where z_hat arises: the `SplitModel`, the module whose output it is, or a dotted name of either; None
            looks for the one SplitModel in the network.
        refresh_every: epochs between two refreshes, for a plug-in that does not follow the steps.
        competence: take the loss of the step for a mean cross-entropy and let it weigh the penalty, see `sfumato.CEM`;
            without classes it does not.
        labels: batch -> labels; the second of two parts of a batch, or its entry `labels`, by default.
        inputs: batch -> what the network's forward takes; its first part, or its other entries by name, by default.
        data: batches for the refresh, augmented as in training; without it batches like the training's are drawn, at
            most 50,000 samples, by a loader of their own.

    Raises:
        ConfigError: a setting without meaning.
    """

    def __init__(
        self,
        cem: CEM,
        *,
        lam: float = LAMBDA,
        lam_schedule: str = "constant",
        features: str | nn.Module | None = None,
        refresh_every: int = 1,
        competence: bool = True,
        labels: Callable[[Any], Any] | None = None,
        inputs: Callable[[Any], Any] | None = None,
        data: Iterable[Any] | None = None,
    ) -> None:
        if not isinstance(cem, CEM):
            raise ConfigError(f"cem is a {type(cem).__name__}; give a sfumato.CEM(...)")
        for name, value, kind in (
            ("lam", lam, float),
            ("features", features, str | nn.Module | None),
            ("refresh_every", refresh_every, int),
            ("competence", competence, bool),
        ):
            check_type(name, value, kind)
        for name, function in (("labels", labels), ("inputs", inputs)):
            if function is not None and not callable(function):
                raise ConfigError(f"{name} is {function!r}; give a function of a batch, or None")
        if data is not None and not isinstance(data, Iterable):
            raise ConfigError(f"data is {data!r}; give a list of batches or a loader, or None")
        if data is not None and iter(data) is data:
            raise ConfigError("data can be gone through only once, and every refresh needs it; give a list or a loader")
        self.defense = CEMDefense(
            cem, lam=lam, lam_schedule=lam_schedule, refresh_every=refresh_every, competence=competence
        )
        self.features = features
        self.labels = labels or (labels_of if cem.num_classes is not None else lambda batch: None)
        self.inputs = inputs_of if inputs is None else lambda batch: ((inputs(batch),), {})
        self.data = data
        self.tap: Tap | None = None
        self.start()

    @property
    def cem(self) -> CEM:
        """The plug-in."""
        return self.defense.cem

    def start(self) -> None:
        """A training begins; `load_state` may follow."""
        self._epoch, self._penalised, self._narrowed = 0, False, False
        self.within = False  # an epoch has begun and not ended

    def attach(self, network: nn.Module) -> Tap:
        """Listen to a network, once."""
        if self.tap is None:
            self.tap = Tap(network, self.features)
            self._parameters = list(network.parameters())
            self.defense.watch(self._parameters)
        return self.tap

    def detach(self) -> None:
        """Leave the network as it was."""
        self.defense.watch(())
        if self.tap is not None:
            self.tap.close()
            self.tap = None

    def begin_epoch(self, network: nn.Module, batches: Batches, run: Callable[[Any], Any]) -> None:
        """Refresh the mixture, if it is due and does not follow the steps.

        A training that is resumed in the middle of an epoch goes on with the mixture of its checkpoint.
        """
        if self.within:
            return
        self.within, self._penalised = True, False
        cem = self.cem
        if cem.update == "steps":
            self.defense.to(next(network.parameters()).device)
            cem.begin_period()
        elif self._epoch % self.defense.refresh_every == 0 or not cem.mixture.refreshes:
            with aside(self._epoch):
                found = batches() if self.data is None else self.data
                features, labels = self.attach(network).collect(network, found, run, self.labels)
            self.defense.to(features.device)
            cem.refresh(features, labels)

    def end_epoch(self, network: nn.Module, batches: Batches, run: Callable[[Any], Any]) -> None:
        """Check that the penalty arrived; make batch norm exact for the weights of now, before anybody measures.

        Raises:
            FeatureError: lambda is positive, and no parameter of the encoder got a gradient from the penalty.
        """
        if self.defense.lam > 0 and not self._penalised:
            raise FeatureError(
                "no step of this epoch asked for the penalty of CEM, so the model is trained without it: a "
                "compute_loss of your own has to call super().compute_loss(...), and a training step to give its loss"
            )
        self.defense.end_epoch()
        self.within, self._epoch = False, self._epoch + 1
        if not has_batch_norm(network):
            return
        seen = 0
        with exact_batch_norm(network), aside(self._epoch):
            for batch in batches():
                run(batch)
                seen += len(self.attach(network).take())
                if seen >= ENOUGH_FOR_STATISTICS:
                    break

    def figures(self) -> dict[str, float]:
        """What a log shows of the epoch."""
        names = ("information", "information_per_dimension", "lam", "fit", "competence")
        report = self.defense.report()
        return {f"cem_{name}": report[name] for name in names if report.get(name) is not None}

    def penalty(
        self, labels: Tensor | None, progress: float | None, optimizer: torch.optim.Optimizer | None, loss: Tensor
    ) -> Tensor:
        """lambda x factor(progress, lr) x CEM of the last forward, a scalar; `loss` is that of the step.

        Raises:
            ConfigError: lambda's schedule needs the progress, and the training has no known length.
            FeatureError: the feature has no graph to the encoder.
        """
        assert self.tap is not None
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise FeatureError(
                f"the loss of the training step is {what}; give one number as a tensor, in a dictionary as its entry "
                "'loss', such as the mean over the batch"
            )
        z_hat, self._penalised = self.tap.take(), True
        factor, lr = self.defense.factor, 0.0 if optimizer is None else float(optimizer.param_groups[0]["lr"])
        if progress is None and factor(0.0, lr) != factor(1.0, lr):
            raise ConfigError(
                "lambda's schedule needs to know how long the training lasts, and a stream without a length, max_time "
                "and max_epochs=-1 do not say it: give max_steps, or lam_schedule='constant'"
            )
        if not z_hat.requires_grad and torch.is_grad_enabled() and self.cem.training:
            raise FeatureError(f"the feature has no graph, so the penalty cannot reach the encoder: {self.tap.why()}")
        if optimizer is not None and not self._narrowed:
            # A gradient moves only what the optimizer holds; one that shards parameters holds others than the network.
            self._narrowed = True
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if moved := [parameter for parameter in self._parameters if id(parameter) in held]:
                self.defense.watch(moved)
        self.defense.before_step(progress or 0.0, lr)
        return self.defense.weigh(z_hat, labels, loss)

    def state(self) -> dict[str, Tensor]:
        """The mixture and the place in the training, as tensors."""
        return {**self.cem.state_dict(), _PLACE: torch.tensor([self._epoch, int(self.within)])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        mixture = dict(state)
        self._epoch, within = mixture.pop(_PLACE, torch.tensor([0, 0])).tolist()  # earlier versions had none
        self.within = bool(within)
        self.cem.load_state_dict(mixture)


SETTINGS = tuple(name for name in Protection.__init__.__annotations__ if name not in ("cem", "return"))


MOST_SAMPLES = 50_000
"""Samples of all ranks that a refresh looks at, at most; as many as the paper's training set has."""
_REMEDY = "give the refresh batches of its own with data=, or build CEM(update='steps'), which needs no refresh"


def own_batches(loader: Any, most: float = float("inf"), *, sharded: tuple[int, int] | None = None) -> Iterable[Any]:
    """Batches like those of `loader`, at most `most` of them and `MOST_SAMPLES` samples, from a loader of their own.

    The samples are those of the loader's sampler, which is copied, so that the order of the training stays what it is;
    they are mixed, because batches of one class, as a sorted set gives, have other statistics than those of the steps.
    What a `DistributedSampler` repeats to give all ranks equally many is left out. A stream is copied, too.
    `most` is what a training, or an epoch of it, uses at most; `sharded` is (rank, ranks) for a loader that gives every
    rank all samples.
    """
    if isinstance(loader, Iterator | Mapping | list | tuple) or not isinstance(loader, Iterable):
        raise ConfigError(
            f"the training batches come from a {type(loader).__name__}, which cannot be copied; {_REMEDY}"
        )
    if not isinstance(loader, DataLoader):
        return islice(iter(loader), int(min(most, MOST_SAMPLES)))
    ranks = sharded[1] if sharded is not None else getattr(loader.sampler, "num_replicas", 1)
    size = loader.batch_size or 1
    count = int(min(most, -(-MOST_SAMPLES // (ranks * size))))
    dataset = loader.dataset
    options: dict[str, Any] = {"batch_size": loader.batch_size}
    if isinstance(dataset, IterableDataset):
        dataset = _copied(dataset)
        options["drop_last"] = loader.drop_last
    elif loader.batch_size is None and loader.batch_sampler is not None:  # batches of the user's own making
        options = {"batch_sampler": list(islice(_copied(loader.batch_sampler, dataset), count))}
    else:
        options |= {"sampler": _indices(loader, count * size, sharded), "drop_last": loader.drop_last}
    again: DataLoader[Any] = DataLoader(
        dataset, collate_fn=loader.collate_fn, num_workers=loader.num_workers, worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context, generator=torch.Generator().manual_seed(0), **options,
    )  # fmt: skip
    return islice(iter(again), count)


def _indices(loader: DataLoader[Any], most: int, sharded: tuple[int, int] | None) -> list[int]:
    sampler = loader.sampler
    drawn: Iterable[int] = _copied(sampler, loader.dataset)
    if isinstance(sampler, DistributedSampler):
        own = -(-(len(sampler.dataset) - sampler.rank) // sampler.num_replicas)  # type: ignore[arg-type]
        most = min(most, own)
    if sharded is not None:
        drawn = islice(drawn, sharded[0], None, sharded[1])
    found = list(islice(drawn, most))
    return [found[i] for i in torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()]


def _copied(source: Any, shared: Any = None) -> Any:
    """A copy with a state of its own; a data set that it knows is shared and not copied."""
    try:
        return copy.deepcopy(source, {id(shared): shared})
    except Exception as error:  # whatever a class of the user's may hold: files, sockets, generators, locks
        raise ConfigError(f"the {type(source).__name__} cannot be copied ({error}); {_REMEDY}") from error


@contextmanager
def aside(epoch: int) -> Iterator[None]:
    """Random numbers that depend on the epoch alone; those of the training are what they were afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    seed = derive_seed(0, "pass", epoch)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
