"""A resumed training is the same as an undisturbed one: integration, rule of the checkpoints, lambda 0 and positive."""

import copy
import logging
import shutil

import pytest
import torch
from loop_cases import data, plug_in, split_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from sfumato.errors import CheckpointError

EPOCHS, BATCH, LR = 3, 24, 0.5  # four steps per epoch
RULES = {"epoch": 4, "step": 6, "last step": 8}  # the step that the checkpoint belongs to
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Batch norm, whose statistics a resume must not lose."""

    def __init__(self):
        super().__init__()
        self.split = split_model()
        self.split.edge.insert(1, nn.BatchNorm1d(4))

    def forward(self, x, labels=None):
        logits = self.split(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits} if labels is not None else logits


class Loader(DataLoader):
    """Batches in their order, which Lightning may continue in the middle."""

    done = 0

    def __iter__(self):
        start, self.done = self.done, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.done = index + 1
                yield batch
        self.done = 0

    def state_dict(self):
        return {"done": self.done % len(self)}

    def load_state_dict(self, state):
        self.done = state["done"]


def lightning(folder, rule, lam, update, resume):
    pl = pytest.importorskip("pytorch_lightning")
    from sfumato.integrations.lightning import CEMCallback

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)

    when = {"every_n_epochs": 1, "save_on_train_epoch_end": True} if rule == "epoch" else {"every_n_train_steps": 2}
    keep = [] if resume else [pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)]
    module = Module()
    trainer = pl.Trainer(
        max_epochs=EPOCHS, callbacks=[CEMCallback(plug_in(update=update), lam=lam), *keep], logger=False,
        accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=not resume,
    )  # fmt: skip
    path = folder / f"step={RULES[rule]}.ckpt" if resume else None
    trainer.fit(module, Loader(TensorDataset(*data()), batch_size=BATCH), ckpt_path=path)
    return module.net


def hugging_face(folder, rule, lam, update, resume):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from sfumato.integrations.huggingface import CEMTrainerMixin

    class PrivateTrainer(CEMTrainerMixin, transformers.Trainer):
        pass

    x, y = data()
    net = Net()
    when = {"save_strategy": "epoch"} if rule == "epoch" else {"save_strategy": "steps", "save_steps": 2}
    when = {"save_strategy": "no"} if resume else when
    args = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=LR, logging_strategy="no", **when,
    )  # fmt: skip
    PrivateTrainer(
        model=net, args=args, train_dataset=[{"x": one, "labels": label} for one, label in zip(x, y, strict=True)],
        cem=plug_in(update=update, clusters_per_class=1), lam=lam,
    ).train(resume_from_checkpoint=str(folder / f"checkpoint-{RULES[rule]}") if resume else None)  # fmt: skip
    return net


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights at the end of a training that is not interrupted, and its folder of checkpoints; each trained once."""
    found = {}

    def whole(integration, rule, lam, update):
        key = integration, rule == "epoch", lam, update  # steps of both other rules lie in one training
        if key not in found:
            folder = tmp_path_factory.mktemp("whole")
            net = integration(folder, rule, lam, update, resume=False)
            found[key] = copy.deepcopy(net.state_dict()), folder
        return found[key]

    return whole


@pytest.mark.parametrize(("lam", "update"), [(0.0, "epoch"), (2.0, "epoch"), (2.0, "steps")])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("integration", [lightning, hugging_face], ids=["lightning", "huggingface"])
def test_resumed_is_as_undisturbed(integration, rule, lam, update, undisturbed):
    whole, folder = undisturbed(integration, rule, lam, update)
    again = integration(folder, rule, lam, update, resume=True).state_dict()
    for name, value in whole.items():
        assert torch.equal(again[name], value), (name, float((again[name] - value).abs().max()))


@pytest.mark.parametrize("damage", ["lost", "one bit"])
def test_a_hugging_face_checkpoint_without_its_mixture_says_so(tmp_path, damage, undisturbed):
    shutil.copytree(undisturbed(hugging_face, "epoch", 2.0, "epoch")[1], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoint-4" / "cem.safetensors"
    if damage == "lost":
        path.unlink()
        text = r"checkpoint-4 holds no mixture of CEM \(cem.safetensors\).*resume from another checkpoint"
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        text = r"cem.safetensors is damaged \(its values are not those that were written\); resume from the checkpoint"
    with pytest.raises(CheckpointError, match=text):
        hugging_face(tmp_path, "epoch", 2.0, "epoch", resume=True)
