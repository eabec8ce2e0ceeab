"""CEM in Hugging Face's Trainer ends where the loop written by hand does."""

import pytest
import torch
from loop_cases import BATCH, EPOCHS, LAM, LR, PARTS, by_hand, data, differ, equal, plug_in, split_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
from sfumato.integrations.huggingface import CEMTrainerMixin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    """As the Trainer wants it: a loss and logits from named inputs."""

    def __init__(self, *, normalises=False):
        super().__init__()
        self.split = split_model()
        if normalises:  # as the Trainer's causal language models do: the loss is a sum over the accumulated batches
            self.accepts_loss_kwargs = True

    def forward(self, x, labels=None, num_items_in_batch=None):
        logits = self.split(x)
        if labels is None:
            return {"logits": logits}
        if num_items_in_batch is None:
            return {"loss": cross_entropy(logits, labels), "logits": logits}
        return {"loss": cross_entropy(logits, labels, reduction="sum") / num_items_in_batch, "logits": logits}


class PrivateTrainer(CEMTrainerMixin, transformers.Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def train(model, folder, **options):
    x, y = data()
    args = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, report_to=[],
        gradient_accumulation_steps=PARTS, max_grad_norm=0.0, save_strategy="no", use_cpu=True, disable_tqdm=True,
        logging_steps=1,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    trainer = PrivateTrainer(
        model=model, args=args, train_dataset=[{"x": one, "labels": label} for one, label in zip(x, y, strict=True)],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        **({"cem": plug_in(), "lam": LAM} | options),
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("normalises", [False, True])
def test_it_ends_where_the_loop_by_hand_does(normalises, tmp_path):
    model = Model(normalises=normalises)
    trainer = train(model, tmp_path)
    equal(model.split.state_dict(), by_hand())
    differ(model.split.state_dict(), by_hand(0.0))
    logged = [line["cem_information"] for line in trainer.state.log_history if "cem_information" in line]
    assert len(logged) == EPOCHS
    assert logged[-1] == pytest.approx(trainer.protection.cem.information)
    x, y = data()
    with torch.no_grad():
        found = trainer.prediction_step(model.eval(), {"x": x, "labels": y}, prediction_loss_only=True)[0]
        assert float(found) == pytest.approx(float(cross_entropy(model.split(x), y)))  # no penalty in evaluation


def test_a_sorted_training_set_is_mixed_before_anything_is_fitted_to_its_batches(tmp_path):
    """Batches of one class have statistics that no step sees."""
    x, y = data()
    order = y.argsort()
    rows = [{"x": one, "labels": label} for one, label in zip(x[order], y[order], strict=True)]
    args = transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    trainer = PrivateTrainer(model=Model(), args=args, train_dataset=rows, cem=plug_in())
    _, batches, _ = trainer._runnable()
    labels = [batch["labels"] for batch in batches()]
    assert sorted(torch.cat(labels).tolist()) == sorted(y.tolist())
    assert all(len(part.unique()) > 1 for part in labels)
