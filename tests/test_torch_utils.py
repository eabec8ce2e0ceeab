"""Measuring a model leaves the mode of every layer as it was."""

import pytest
import torch
from torch import nn

from sfumato import attacks
from sfumato.attacks import Observer
from sfumato.attacks.probes import probe_attribute
from sfumato.attacks.queries import encode_repeated
from sfumato.audit.measure import expose
from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel
from sfumato.studies.tune_trials import measured
from sfumato.torch_utils import evaluating, wake
from sfumato.training import TrainConfig, Trainer, accuracy, collect_features
from sfumato.training.evaluate import measure_information

SET = ImageSet(
    torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(40) % 4,
    ("a", "b", "c", "d"),
)


def model() -> SplitModel:
    edge = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Sigmoid())
    return SplitModel(edge, Channel(noise_std=0.1), nn.Sequential(nn.Flatten(), nn.Linear(72, 4)))


def ridge(victim):
    return attacks.build(attacks.RidgeConfig()).fit(Observer(victim, SET))


def optimization(victim):
    config = attacks.OptimizationConfig(images=4, iterations=2, restarts=1, choose_on=2, tv=0.0, prior=1.0)
    return attacks.build(config).fit(Observer(victim, SET))


def audited(victim, folder):
    from sfumato.audit import Subject, run_audit
    from sfumato.audit.suite import Piece
    from sfumato.data import DataSets

    suite = (Piece("ridge", "attack", "ridge", 1, 0),)
    sets = DataSets("own", SET, SET, "")
    return run_audit(Subject("own", victim), sets, folder, minutes=0.5, suite=suite)


MEASURES = {
    "accuracy": lambda victim, _: accuracy(victim, SET, seed=0),
    "collect_features": lambda victim, _: collect_features(victim, SET.images),
    "measure_information": lambda victim, _: measure_information(victim, SET, seed=0),
    "invert": lambda victim, _: attacks.invert(ridge(victim), victim, SET),
    "white box": lambda victim, _: attacks.invert(optimization(victim), victim, SET),
    "encode_repeated": lambda victim, _: encode_repeated(victim, SET.float(), queries=2),
    "probe": lambda victim, _: probe_attribute(Observer(victim, SET), victim, SET, "brightness"),
    "studies": lambda victim, _: measured(victim, {"ridge": ridge(victim)}, SET, draws=1, seed=0, halves=0),
    "expose": lambda victim, _: expose(victim, SET, seed=0, device=torch.device("cpu")),
    "audit": audited,
}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", MEASURES)
def test_every_layer_keeps_its_mode_and_statistics(name, frozen, tmp_path):
    victim = model().train()
    if frozen:
        victim.edge[1].eval()
    modes = [part.training for part in victim.modules()]
    state = {key: value.clone() for key, value in victim.state_dict().items()}
    MEASURES[name](victim, tmp_path)
    assert [part.training for part in victim.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in victim.state_dict().items())


def test_modes_come_back_after_an_error_and_gradients_only_where_asked():
    net = model().train()

    def fail():
        with evaluating(net):
            assert not any(part.training for part in net.modules())
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(part.training for part in net.modules())
    with evaluating(net, gradients=True):
        assert torch.is_grad_enabled()
    with torch.no_grad(), evaluating(net, gradients=True):
        assert not torch.is_grad_enabled()


def test_what_sleeps_as_a_whole_wakes_and_what_was_frozen_stays_so():
    asleep = model().eval()
    wake(asleep)
    assert all(part.training for part in asleep.modules())
    built = SplitModel(model().edge.eval(), Channel(noise_std=0.1), model().cloud.eval())  # its own flag says training
    wake(built)
    assert built.edge[1].training
    frozen = model().train()
    frozen.edge[1].eval()
    wake(frozen)
    assert [part.training for part in frozen.edge] == [True, False, True, True]


def test_a_training_leaves_frozen_statistics_alone():
    victim = model().train()
    victim.edge[1].eval()
    config = TrainConfig(epochs=2, batch_size=8, device="cpu", watch=False, cem=False, augment=False)
    before = victim.edge[1].running_mean.clone()
    Trainer(victim, [], SET, SET, config).run()
    assert torch.equal(victim.edge[1].running_mean, before)
    woken = model().eval()
    Trainer(woken, [], SET, None, config).run()
    assert not torch.equal(woken.edge[1].running_mean, before)
