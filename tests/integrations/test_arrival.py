"""The penalty reaches the weights, or somebody is told; a refresh has batches of its own."""

import itertools
import json
import logging
import random
import subprocess
import sys

import pytest
import torch
from loop_cases import MIXED, data, plug_in, split_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from sfumato import defenses
from sfumato.errors import ConfigError, FeatureError
from sfumato.integrations.protection import Protection, aside, own_batches

pytestmark = pytest.mark.filterwarnings("ignore")
X, Y = data()
SGD = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # whose rate a schedule may ask for


def step(protection, network, loss_of, progress=0.5):
    """One epoch of one step, as an integration makes it."""
    protection.attach(network)
    protection.begin_epoch(network, lambda: [(X, Y)], lambda batch: network(batch[0]))
    task = cross_entropy(network(X), Y)
    loss_of(task, protection.penalty(Y, progress, SGD, task)).backward()
    protection.end_epoch(network, lambda: [], None)


def test_a_penalty_that_arrives_is_content():
    protection = Protection(plug_in(), lam=1.0)
    step(protection, split_model(), lambda task, penalty: task + penalty)
    assert protection.defense._watched == []  # and costs nothing from then on


def test_a_loss_that_leaves_the_penalty_out_is_told_at_the_end_of_the_first_epoch():
    with pytest.raises(
        FeatureError, match="no backward pass ran through it, so the model is trained without a defence"
    ):
        step(Protection(plug_in(), lam=1.0), split_model(), lambda task, penalty: task)
    step(Protection(plug_in(), lam=0.0), split_model(), lambda task, penalty: task)


def test_an_encoder_frozen_behind_its_trained_input_is_told():
    class Prompted(nn.Module):
        """The input requires a gradient, so the feature has a graph although the encoder is frozen."""

        def __init__(self):
            super().__init__()
            self.split = split_model()
            self.split.edge.requires_grad_(False)

        def forward(self, x):
            return self.split(x.clone().requires_grad_())

    with pytest.raises(FeatureError, match="reached the feature, but no parameter before it.*frozen; unfreeze"):
        step(Protection(plug_in(), lam=1.0), Prompted(), lambda task, penalty: task + penalty)


def test_an_encoder_that_no_optimizer_holds_is_told():
    network = split_model()

    def epoch(optimizer):
        protection = Protection(plug_in(), lam=1.0)
        protection.attach(network)
        protection.begin_epoch(network, lambda: [(X, Y)], lambda batch: network(batch[0]))
        for _ in range(3):
            task = cross_entropy(network(X), Y)
            (task + protection.penalty(Y, 0.5, optimizer, task)).backward()
        protection.end_epoch(network, lambda: [], None)

    epoch(torch.optim.SGD(network.parameters(), lr=0.1))
    with pytest.raises(FeatureError, match="no parameter before it.*that the optimizer holds"):
        epoch(torch.optim.SGD(network.cloud.parameters(), lr=0.1))


@pytest.mark.parametrize("loss", [None, 0.5, torch.ones(12), {"loss": torch.ones(())}])
def test_a_loss_that_is_no_number_is_told(loss):
    protection, network = Protection(plug_in(), lam=1.0), split_model()
    protection.attach(network)
    with pytest.raises(FeatureError, match="the loss of the training step is a .*; give one number as a tensor"):
        protection.penalty(Y, 0.5, SGD, loss)


def test_no_penalty_in_a_whole_epoch_is_told():
    protection, network = Protection(plug_in(), lam=1.0), split_model()
    protection.begin_epoch(network, lambda: [(X, Y)], lambda batch: network(batch[0]))
    with pytest.raises(FeatureError, match="no step of this epoch asked for the penalty"):
        protection.end_epoch(network, lambda: [], None)


@pytest.mark.parametrize("kind", ["frozen", "re-entrant"])
def test_a_feature_without_a_graph_is_diagnosed(kind):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.split = split_model()

        def forward(self, x):
            return checkpoint(self.split, x.clone().requires_grad_(), use_reentrant=True)

    network = Checkpointed() if kind == "re-entrant" else split_model()
    if kind == "frozen":
        network.edge.requires_grad_(False)
    with pytest.raises(
        FeatureError, match="use_reentrant=False" if kind == "re-entrant" else "all layers up to it are"
    ):
        step(Protection(plug_in(), lam=1.0), network, lambda task, penalty: task + penalty)


def test_a_schedule_that_needs_the_length_refuses_a_training_without_one():
    add = lambda task, penalty: task + penalty  # noqa: E731
    with pytest.raises(ConfigError, match=r"how long the training lasts.*give max_steps, or lam_schedule='constant'"):
        step(Protection(plug_in(), lam_schedule="ramp"), split_model(), add, progress=None)
    for schedule in ("constant", "lr_coupled"):
        step(Protection(plug_in(), lam_schedule=schedule), split_model(), add, progress=None)


def test_the_own_trainer_checks_too():
    class Deaf(defenses.CEMDefense):
        def penalty(self, batch):
            super().penalty(batch)

    from sfumato.data import load
    from sfumato.training import TrainConfig, Trainer, build_model

    config = TrainConfig(width=4, epochs=1, noise_std=0.1, watch=False, device="cpu", hold_out=0.0)
    images = load("digits").train.subset(range(160))
    for kind in (Deaf, defenses.CEMDefense):
        cem = plug_in(num_classes=10, clusters_per_class=1, update="steps")
        chosen = [kind(cem, lam=1.0)]
        trainer = Trainer(build_model(config, images, chosen), chosen, images, None, config)
        if kind is Deaf:
            with pytest.raises(FeatureError, match="no backward pass ran through it"):
                trainer.run()
        else:
            trainer.run()


class Stream(IterableDataset):
    def __init__(self, length=None):
        self.length, self.given = length, 0

    def __iter__(self):
        for i in itertools.count() if self.length is None else range(self.length):
            self.given += 1
            yield torch.tensor(float(i))


def values(batches):
    return torch.cat([batch[0] if isinstance(batch, list) else batch for batch in batches]).tolist()


def test_an_endless_stream_ends_where_the_epoch_or_the_samples_do_and_is_not_borrowed(monkeypatch):
    stream = Stream()
    loader = DataLoader(stream, batch_size=4)
    assert values(own_batches(loader, 3)) == list(range(12))
    assert stream.given == 0
    monkeypatch.setattr("sfumato.integrations.protection.MOST_SAMPLES", 10)
    assert len(values(own_batches(loader))) == 12  # whole batches
    assert len(values(own_batches(DataLoader(Stream(5), batch_size=4)))) == 5


@pytest.mark.parametrize("kind", ["shuffled", "subset", "weighted", "own batches"])
def test_the_samples_are_those_of_the_sampler_and_its_order_is_left_alone(kind):
    dataset, own = TensorDataset(torch.arange(30.0)), torch.Generator().manual_seed(5)
    options = {
        "shuffled": {"shuffle": True, "batch_size": 4, "generator": own},
        "subset": {"sampler": SubsetRandomSampler(range(10), generator=own), "batch_size": 4},
        "weighted": {"sampler": WeightedRandomSampler([1.0] * 3 + [0.0] * 27, 20, generator=own), "batch_size": 4},
        "own batches": {"batch_sampler": [[1, 2], [3, 4], [5, 6]]},
    }[kind]
    loader, before = DataLoader(dataset, **options), own.get_state()
    found = values(own_batches(loader))
    assert torch.equal(own.get_state(), before)
    expected = {"shuffled": range(30), "subset": range(10), "weighted": range(3), "own batches": range(1, 7)}[kind]
    assert set(found) == set(map(float, expected))
    assert len(found) == {"weighted": 20}.get(kind, len(expected))


def test_what_a_distributed_sampler_repeats_is_left_out():
    dataset = TensorDataset(torch.arange(10.0))
    found = [
        values(own_batches(DataLoader(dataset, batch_size=2, sampler=DistributedSampler(dataset, 4, rank))))
        for rank in range(4)
    ]
    assert sorted(itertools.chain(*found)) == list(range(10))  # 12 without
    plain = [values(own_batches(DataLoader(dataset, batch_size=2), sharded=(rank, 4))) for rank in range(4)]
    assert sorted(itertools.chain(*plain)) == list(range(10))


def test_a_set_is_mixed_and_persistent_workers_are_not_disturbed():
    code = (  # in a process of its own: workers that are forked from one with threads may hang
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from sfumato.integrations.protection import own_batches\n"
        "loader = DataLoader(TensorDataset(torch.arange(96)), batch_size=12, num_workers=1, persistent_workers=True)\n"
        "training = iter(loader)\n"
        "first = next(training)[0].tolist()\n"
        "print([value for batch in own_batches(loader) for value in batch[0].tolist()])\n"
        "print([*first, *(value for batch in training for value in batch[0].tolist())])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    mixed, training = map(json.loads, done.stdout.splitlines())
    assert mixed == MIXED.tolist()
    assert training == list(range(96))


def test_what_cannot_be_gone_through_twice_is_refused():
    class Socket(IterableDataset):
        def __init__(self):
            self.lines = (line for line in [1, 2])

        def __iter__(self):
            return self.lines

    for loader in (iter([1]), {"a": [1]}, [1], DataLoader(Socket())):
        with pytest.raises(ConfigError, match="give the refresh batches of its own with data="):
            list(own_batches(loader))
    with pytest.raises(ConfigError, match="data can be gone through only once"):
        Protection(plug_in(), data=iter([1]))


def test_random_numbers_of_a_pass_depend_on_the_epoch_alone():
    def draws(epoch):
        with aside(epoch):
            return [random.random(), float(torch.rand(())), *torch.randperm(5).tolist()]

    before = random.getstate(), torch.get_rng_state()
    first = draws(3)
    assert (random.getstate(), torch.get_rng_state().tolist()) == (before[0], before[1].tolist())
    torch.rand(7)
    assert draws(3) == first != draws(4)


def lightning(module_options=None, *, lam_schedule="constant", loader=None, **options):
    pl = pytest.importorskip("pytorch_lightning")
    from sfumato.integrations.lightning import CEMCallback

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = split_model()
            for name, value in (module_options or {}).items():
                setattr(self, name, value)

        def training_step(self, batch, _):
            return cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Samples(IterableDataset):
        def __iter__(self):
            yield from zip(X, Y, strict=True)

    callback = CEMCallback(plug_in(clusters_per_class=1), lam=1.0, lam_schedule=lam_schedule)
    trainer = pl.Trainer(
        callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(Module(), loader or DataLoader(Samples(), batch_size=24))
    return callback.protection


def test_lightning_with_a_stream_or_a_time_limit():
    assert float(lightning(max_epochs=1).defense.weight) == 1.0
    assert lightning(max_steps=2, lam_schedule="ramp").defense.weight > 0
    assert lightning(fast_dev_run=True)._epoch == 1
    for options in ({"max_epochs": 2}, {"max_time": "00:00:01:00", "max_epochs": 2}):
        with pytest.raises(ConfigError, match="how long the training lasts"):
            lightning(lam_schedule="ramp", **options)
    with pytest.raises(
        ConfigError, match=r"Module optimises by hand \(automatic_optimization=False\).*leave CEMCallback"
    ):
        lightning({"automatic_optimization": False}, max_epochs=1)


def test_hugging_face_with_a_loss_of_ones_own_and_an_endless_stream(tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from sfumato.integrations.huggingface import CEMTrainerMixin

    class PrivateTrainer(CEMTrainerMixin, transformers.Trainer):
        pass

    class Careless(PrivateTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs)["loss"]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.split = split_model()

        def forward(self, x, labels=None):
            logits = self.split(x)
            return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}

    class Endless(IterableDataset):
        def __iter__(self):
            for i in itertools.count():
                yield {"x": X[i % 96], "labels": Y[i % 96]}

    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=24, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    options = {"args": args, "train_dataset": Endless(), "lam": 1.0}
    PrivateTrainer(model=Model(), cem=plug_in(), **options).train()
    with pytest.raises(FeatureError, match=r"has to call super\(\).compute_loss"):
        Careless(model=Model(), cem=plug_in(), **options).train()
