"""CEM in the Trainer of Hugging Face: `class PrivateTrainer(CEMTrainerMixin, Trainer): pass`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.cem import CEM
from sfumato.defenses import LAMBDA
from sfumato.errors import ConfigError
from sfumato.integrations.protection import Protection
from sfumato.integrations.tap import inputs_of

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ConfigError(f"CEMTrainerMixin needs transformers ({error}): pip install 'sfumato[hf]'") from None

__all__ = ["CEMTrainerMixin"]


class CEMTrainerMixin:
    """Adds `lambda x factor(progress) x CEM(z_hat, y)` to the loss of a `transformers.Trainer`.

        class PrivateTrainer(CEMTrainerMixin, Trainer):
            pass

        PrivateTrainer(model=model, args=args, train_dataset=data, cem=cem, features="split").train()

    A plug-in that follows the steps (`CEM(update="steps")`) needs no refresh. Another is refreshed before each epoch
    from the training set, mixed, as training steps see it, without gradients. At the end of each epoch some
    batches make the statistics of batch norm exact. Where the Trainer normalises a loss over accumulated batches
    itself, the penalty is divided by their number here, and where it divides, there. Mixed precision and several
    processes are the Trainer's.

    Args:
        cem: the plug-in.
        lam: lambda of Eq. 8, in the units of the plug-in's scaling.
        lam_schedule: `ramp`, `lr_coupled` or `constant`.
        features: where z_hat arises: the `SplitModel`, the module whose output it is, or a dotted name of either; None
            looks for the one SplitModel in the model.
        labels: inputs -> labels; their entry `labels` by default.
        refresh_every: epochs between two refreshes, for a plug-in that does not follow the steps.
        competence: let the loss of the step, a mean cross-entropy, weigh the penalty, see `sfumato.CEM`.

    Raises:
        ConfigError: a setting without meaning, or a model without such features.
    """

    def __init__(
        self,
        *args: Any,
        cem: CEM,
        lam: float = LAMBDA,
        lam_schedule: str = "constant",
        features: str | nn.Module | None = None,
        labels: Callable[[Any], Any] | None = None,
        refresh_every: int = 1,
        competence: bool = True,
        **named: Any,
    ) -> None:
        self.protection = Protection(
            cem, lam=lam, lam_schedule=lam_schedule, features=features, refresh_every=refresh_every,
            competence=competence, labels=labels,
        )  # fmt: skip
        super().__init__(*args, **named)
        self.protection.attach(self._plain())
        self._refresh_data: Any = None
        self.add_callback(_Refresh(self))  # type: ignore[attr-defined]

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's own loss, and in training the penalty."""
        labels = self.protection.labels(inputs)
        made = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if not model.training:
            return made
        loss = made[0] if return_outputs else made
        parts = self._parts(num_items_in_batch)  # of which the Trainer's loss is already one
        loss = loss + self._penalty(labels, loss * parts) / parts
        return (loss, made[1]) if return_outputs else loss

    def begin_epoch(self, epoch: int) -> None:
        """Fit the mixture to the features of the training set, if it is due."""
        network = self._plain()
        network.train()  # as the Trainer does before every step
        self.protection.begin_epoch(epoch, network, *self._runnable(network))

    def end_epoch(self) -> None:
        """Exact statistics for an evaluation, and the epoch's figures."""
        network = self._plain()
        self.protection.end_epoch(network, *self._runnable(network))
        self.log(self.protection.figures())  # type: ignore[attr-defined]

    def _runnable(self, network: nn.Module) -> tuple[Iterable[Any], Callable[[Any], Any]]:
        """The batches of the training set, and what runs one.

        In an order of their own where the set has a length: batches of one class, as a sorted set gives, have other
        statistics than those of the steps.
        """
        own: Any = self
        if self._refresh_data is None:
            data = own.train_dataset
            if hasattr(data, "__len__"):
                order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
                data = torch.utils.data.Subset(data, order.tolist())
            self._refresh_data = own.get_eval_dataloader(data)

        def run(batch: Any) -> Any:
            arguments, named = inputs_of(own._prepare_inputs(batch))
            with own.compute_loss_context_manager():
                return network(*arguments, **named)

        return self._refresh_data, run

    def _penalty(self, labels: Tensor | None, loss: Tensor) -> Tensor:
        own: Any = self
        rate = own.optimizer.param_groups[0]["lr"]
        rate = float(rate.item() if isinstance(rate, torch.Tensor) else rate)
        return self.protection.penalty(labels, own.state.global_step / max(1, own.state.max_steps), rate, loss)

    def _parts(self, num_items_in_batch: Any) -> int:
        """By what the penalty is to be divided here, because the Trainer will not divide the loss afterwards."""
        own: Any = self
        told = getattr(own, "loss_is_scaled_for_ga", None)
        normalised = (own.model_accepts_loss_kwargs and num_items_in_batch is not None) or (
            own.compute_loss_func is not None
        )
        scaled = normalised if told is None else told
        return int(own.current_gradient_accumulation_steps) if scaled else 1

    def _plain(self) -> nn.Module:
        own: Any = self
        plain: nn.Module = own.accelerator.unwrap_model(own.model)
        return plain


class _Refresh(TrainerCallback):
    def __init__(self, trainer: CEMTrainerMixin) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._trainer.begin_epoch(int(state.epoch or 0))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._trainer.end_epoch()
