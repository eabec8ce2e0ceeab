"""CEM as a callback of Lightning: `Trainer(callbacks=[CEMCallback(cem)])`, nothing changes in the module.

Works with the package `lightning` and with `pytorch-lightning`; the extra `lightning` brings the latter.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import Tensor

from sfumato.cem import CEM
from sfumato.errors import ConfigError
from sfumato.integrations.protection import Protection, own_batches

__all__ = ["CEMCallback"]


def _lightning() -> Any:
    """Whichever of the two packages is installed; both hold the same."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ConfigError("CEMCallback needs Lightning, which is not installed: pip install 'sfumato[lightning]'")


pl: Any = _lightning()


class CEMCallback(pl.Callback):
    """Adds `lambda x factor(progress) x CEM(z_hat, y)` to what `training_step` returns, and refreshes the mixture.

    A plug-in that follows the steps (`CEM(update="steps")`) needs no refresh. For another the refresh takes one pass of
    the encoder over batches like the training's before each epoch, as training steps see them, without gradients, on
    each rank over its own part; it has a loader of its own and ends where the epoch, `limit_train_batches`, `max_steps`
    or 50,000 samples do. At the end of each epoch some batches make the statistics of batch norm exact, so that the
    validation measures the weights of now. Lightning divides by `accumulate_grad_batches` and scales for half precision
    afterwards, so both work. The mixture and its place in the epoch are part of Lightning's checkpoints: a resumed
    training is the same as an undisturbed one. Logged: `cem_information` (nats), `cem_information_per_dimension`,
    `cem_lam`, `cem_fit`, `cem_competence`.

    Args:
        cem: the plug-in.
        **settings: `lam`, `lam_schedule`, `features`, `labels`, `inputs`, `data`, `refresh_every` and `competence`, see
            `sfumato.integrations.protection.Protection`.

    Raises:
        ConfigError: a setting without meaning; when the fit begins, a module without such features or one that
            optimises by hand; `lam_schedule="ramp"` in a training of unknown length.
        FeatureError: the penalty did not reach the encoder in the first epoch with lambda > 0.
    """

    def __init__(self, cem: CEM, **settings: Any) -> None:
        super().__init__()
        self.protection = Protection(cem, **settings)
        self._wrapped: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """A training begins; a checkpoint may be loaded next."""
        self.protection.start()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the features, and add the penalty to what the module's `training_step` returns."""
        _check_automatic(pl_module)
        self.protection.attach(pl_module)
        self.protection.defense.to(pl_module.device)
        inner = pl_module.training_step

        @functools.wraps(inner)
        def training_step(batch: Any, *rest: Any, **named: Any) -> Any:
            made = inner(batch, *rest, **named)
            _check_automatic(pl_module)
            if made is None:  # Lightning skips this step
                return None
            loss: Tensor = cast(Any, made.get("loss") if isinstance(made, Mapping) else made)
            optimizer = next(iter(trainer.optimizers), None)
            penalty = self.protection.penalty(self.protection.labels(batch), _progress(trainer), optimizer, loss)
            return {**made, "loss": loss + penalty} if isinstance(made, Mapping) else loss + penalty

        pl_module.training_step = training_step
        self._wrapped = pl_module

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Before the first batch of an epoch, refresh the mixture.

        Lightning does not call `on_train_epoch_start` in the first epoch of a resumed training.
        """
        if not self.protection.within:
            self.protection.begin_epoch(pl_module, *self._runnable(trainer, pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """After the last batch, before validation and checkpoints: exact statistics, and the epoch's figures."""
        if trainer.is_last_batch:
            self._end_epoch(trainer, pl_module)
            for name, value in self.protection.figures().items():
                pl_module.log(name, value)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Likewise after an epoch that `max_steps` or `max_time` cut short."""
        if self.protection.within:
            self._end_epoch(trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        if self._wrapped is not None:
            del self._wrapped.training_step  # the class's own appears again
            self._wrapped = None
        self.protection.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """The mixture and the place in the epoch, as tensors."""
        return self.protection.state()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self.protection.load_state(state_dict)

    def _end_epoch(self, trainer: Any, pl_module: Any) -> None:
        self.protection.end_epoch(pl_module, *self._runnable(trainer, pl_module))

    def _runnable(self, trainer: Any, pl_module: Any) -> tuple[Callable[[], Iterable[Any]], Callable[[Any], Any]]:
        """Batches of the training set, and what runs one as a step does."""
        protection, precision = self.protection, trainer.precision_plugin
        most = trainer.num_training_batches
        if trainer.max_steps > 0:
            most = min(most, trainer.max_steps * trainer.accumulate_grad_batches)
        forward = pl_module
        if type(pl_module).forward is pl.LightningModule.forward:  # without one of its own: its SplitModel runs
            forward = protection.attach(pl_module).split or pl_module

        def run(batch: Any) -> Any:
            moved = trainer.strategy.batch_to_device(precision.convert_input(batch))
            arguments, named = protection.inputs(moved)
            with precision.forward_context():
                return forward(*arguments, **named)

        return lambda: own_batches(trainer.train_dataloader, most), run


def _check_automatic(pl_module: Any) -> None:
    if not pl_module.automatic_optimization:
        raise ConfigError(
            f"{type(pl_module).__name__} optimises by hand (automatic_optimization=False), and Lightning then ignores "
            "the loss that its training_step returns: leave CEMCallback out and add lam * cem(z_hat, y, loss) to the "
            "loss before manual_backward, with cem = sfumato.CEM(..., update='steps')"
        )


def _progress(trainer: Any) -> float | None:
    """Share of the training that is done, in [0, 1]; None where nobody says how long it takes."""
    if any(isinstance(callback, pl.callbacks.Timer) for callback in trainer.callbacks):  # max_time may come first
        return None
    try:
        total = trainer.estimated_stepping_batches
    except pl.utilities.exceptions.MisconfigurationException:  # numbers of accumulated batches that change
        return None
    return min(1.0, trainer.global_step / total) if 0 < total < float("inf") else None
