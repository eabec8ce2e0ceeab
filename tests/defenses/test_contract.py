"""Every defence is one row of this table and passes the same suite, alone and with CEM."""

from collections.abc import Callable

import pytest
import torch

from sfumato.cem import CEM
from sfumato.defenses import Batch, CEMDefense, Defense, Epoch
from sfumato.errors import ConfigError
from sfumato.models import build
from sfumato.split import Channel, SplitModel


def cem() -> CEMDefense:
    return CEMDefense(CEM(num_classes=3, noise_std=0.1, clusters_per_class=2), lam=1.0, lam_schedule="constant")


DEFENSES: dict[str, Callable[[], list[Defense]]] = {"none": list, "cem": lambda: [cem()]}


def images(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


def split_model(defenses: list[Defense]) -> SplitModel:
    torch.manual_seed(0)
    edge, cloud = build("digits", cut=2, num_classes=3, image_shape=(1, 8, 8), bottleneck=4)
    transforms = [module for one in defenses if (module := one.transform()) is not None]
    return SplitModel(edge, Channel(noise_std=0.1, transforms=transforms), cloud)


def batch_of(model: SplitModel, x: torch.Tensor, y: torch.Tensor) -> Batch:
    features, released, logits = model.outputs(x)
    return Batch(x, y, features, released, logits, progress=0.5, lr=0.01)


@pytest.fixture(params=DEFENSES)
def defenses(request: pytest.FixtureRequest) -> list[Defense]:
    return DEFENSES[request.param]()


def test_it_says_truly_whether_it_changes_the_released_feature(defenses):
    for one in defenses:
        assert (one.transform() is not None) == one.changes_released_features


def test_penalties_are_finite_scalars_that_reach_the_encoder(defenses):
    x, y = images()
    model = split_model(defenses)
    for one in defenses:
        one.on_epoch(Epoch(0, lambda: (model.features(x).detach().flatten(1), y)))
    penalties = [value for one in defenses if (value := one.penalty(batch_of(model, x, y))) is not None]
    for value in penalties:
        assert value.ndim == 0
        assert torch.isfinite(value)
        gradients = torch.autograd.grad(value, list(model.edge.parameters()), retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_state_dict_round_trip_gives_the_same_penalty(defenses, request):
    x, y = images()
    model = split_model(defenses)
    for one in defenses:
        one.on_epoch(Epoch(0, lambda: (model.features(x).detach().flatten(1), y)))
    batch = batch_of(model, x, y)
    fresh = DEFENSES[request.node.callspec.params["defenses"]]()
    for old, new in zip(defenses, fresh, strict=True):
        new.load_state_dict(old.state_dict())
        before, after = old.penalty(batch), new.penalty(batch)
        assert (before is None) == (after is None)
        if before is not None:
            assert torch.equal(before, after)


def test_reports_are_plain_values(defenses):
    import json

    x, y = images()
    model = split_model(defenses)
    for one in defenses:
        one.on_epoch(Epoch(0, lambda: (model.features(x).detach().flatten(1), y)))
        json.dumps(one.report(), allow_nan=False)


def test_refresh_every_third_epoch():
    one = CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=1.0, refresh_every=3)
    x, y = images()
    for index in range(7):
        one.on_epoch(Epoch(index, lambda: (x.flatten(1), y)))
    assert one.cem.mixture.refreshes == 3


def test_the_schedule_weighs_the_penalty():
    model = split_model([])
    x, y = images()
    one = CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=2.0, lam_schedule="ramp")
    one.on_epoch(Epoch(0, lambda: (model.features(x).detach().flatten(1), y)))
    batch = batch_of(model, x, y)
    value = one.penalty(batch)
    assert value is not None
    assert float(value.detach()) == pytest.approx(
        2.0 * (0.5 / 0.6) * float(one.cem(batch.features, y).detach()), rel=1e-5
    )


def test_settings_without_meaning():
    with pytest.raises(ConfigError, match="would reward leaking"):
        CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=-1.0)
    with pytest.raises(ConfigError, match="at least 1 epoch"):
        CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=1.0, refresh_every=0)
    with pytest.raises(ConfigError, match="unknown schedule"):
        CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=1.0, lam_schedule="never")
