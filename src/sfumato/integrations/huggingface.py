"""CEM in the Trainer of Hugging Face: `class PrivateTrainer(CEMTrainerMixin, Trainer): pass`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from sfumato import checkpoint
from sfumato.cem import CEM
from sfumato.errors import CheckpointError, ConfigError
from sfumato.integrations.protection import SETTINGS, Protection, own_batches

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ConfigError(f"CEMTrainerMixin needs transformers ({error}): pip install 'sfumato[hf]'") from None

__all__ = ["CEMTrainerMixin"]

_MIXTURE = "cem.safetensors"


_Trainer: Any = object  # what it is mixed into


class CEMTrainerMixin(_Trainer):
    """Adds `lambda x factor(progress) x CEM(z_hat, y)` to the loss of a `transformers.Trainer`.

        class PrivateTrainer(CEMTrainerMixin, Trainer):
            pass

        PrivateTrainer(model=model, args=args, train_dataset=data, cem=cem, features="split").train()

    A plug-in that follows the steps (`CEM(update="steps")`) needs no refresh. Another is refreshed before each epoch
    from the training set, mixed, as training steps see it, without gradients, by a loader of its own, which ends where
    `max_steps` or 50,000 samples do. At the end of each epoch some batches make the statistics of batch norm exact.
    Where the Trainer normalises a loss over accumulated batches itself, the penalty is divided by their number here,
    and where it divides, there. Mixed precision and several processes are the Trainer's. The mixture and its place in
    the epoch lie in the Trainer's checkpoints, in `cem.safetensors`: a resumed training is as an undisturbed one.

    Args:
        cem: the plug-in.
        **named: `lam`, `lam_schedule`, `features`, `labels`, `inputs`, `data`, `refresh_every` and `competence`, see
            `sfumato.integrations.protection.Protection`; everything else is the Trainer's.

    Raises:
        ConfigError: a setting without meaning, or a model without such features.
        CheckpointError: a checkpoint to resume from has no mixture, or a damaged one.
        FeatureError: the penalty did not reach the encoder in the first epoch with lambda > 0.
    """

    def __init__(self, *args: Any, cem: CEM, **named: Any) -> None:
        self.protection = Protection(cem, **{name: named.pop(name) for name in SETTINGS if name in named})
        super().__init__(*args, **named)
        self.protection.attach(self.accelerator.unwrap_model(self.model))
        self.add_callback(_Epochs(self))

    def train(self, *args: Any, **named: Any) -> Any:
        """As the Trainer does it; a checkpoint that it resumes from brings the mixture back."""
        self.protection.start()
        return super().train(*args, **named)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's own loss, and in training the penalty."""
        labels = self.protection.labels(inputs)
        made = super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if not model.training:
            return made
        loss = made[0] if return_outputs else made
        # Where the Trainer will not divide the loss afterwards, its own is already one of so many parts.
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = counted or self.compute_loss_func is not None
        parts = self.current_gradient_accumulation_steps if scaled else 1
        progress = self.state.global_step / max(1, self.state.max_steps)
        loss = loss + self.protection.penalty(labels, progress, self.optimizer, loss * parts) / parts
        return (loss, made[1]) if return_outputs else loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            checkpoint.save(Path(output_dir) / _MIXTURE, self.protection.state(), {})

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint_folder)
        if checkpoint_folder is None:  # earlier versions of the Trainer call it without
            return
        path = Path(checkpoint_folder) / _MIXTURE
        if not path.exists():
            raise CheckpointError(
                f"{checkpoint_folder} holds no mixture of CEM ({_MIXTURE}): it was saved by another Trainer or with "
                "save_only_model=True; resume from another checkpoint, or train anew"
            )
        self.protection.load_state(checkpoint.load(path, remedy="resume from the checkpoint before it")[0])

    def _runnable(self) -> tuple[nn.Module, Callable[[], Iterable[Any]], Callable[[Any], Any]]:
        """The network, batches of the training set, other ones in each process, and what runs one as a step does."""
        network = self.accelerator.unwrap_model(self.model).train()  # as the Trainer does before every step
        args, data = self.args, self.train_dataset
        most = args.max_steps * args.gradient_accumulation_steps if args.max_steps > 0 else float("inf")

        def batches() -> Iterable[Any]:
            theirs = self.get_eval_dataloader(data)  # for its columns and its collator
            stream = isinstance(data, IterableDataset)
            loader: DataLoader[Any] = DataLoader(
                data if stream else theirs.dataset, args.train_batch_size, collate_fn=theirs.collate_fn,
                num_workers=args.dataloader_num_workers, drop_last=args.dataloader_drop_last,
            )  # fmt: skip
            return own_batches(loader, most, sharded=None if stream else (args.process_index, args.world_size))

        def run(batch: Any) -> Any:
            arguments, named = self.protection.inputs(self._prepare_inputs(batch))
            with self.compute_loss_context_manager():
                return network(*arguments, **named)

        return network, batches, run


class _Epochs(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._trainer.protection.begin_epoch(*self._trainer._runnable())

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.epoch == int(state.epoch):  # the last step of an epoch, before a checkpoint of this step is written
            self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        trainer = self._trainer
        if trainer.protection.within:  # else the last step was here; of a stream nobody knew which that was
            trainer.protection.end_epoch(*trainer._runnable())
            trainer.log(trainer.protection.figures())
