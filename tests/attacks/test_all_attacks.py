"""What holds for every attack of the registry, trained or not."""

import math
import threading
import time
from dataclasses import replace
from functools import cache

import pytest
import torch
from attack_cases import ATTACKS, LEARNED, fitted, images, observer, victim

from sfumato.attacks import Knowledge, Observer, build, chosen_images, invert, observe
from sfumato.attacks.base import TooSlow
from sfumato.errors import ConfigError, Interrupted, NotFittedError
from sfumato.metrics import mse, psnr, ssim
from sfumato.split import Channel, SplitModel

WITHOUT_ENCODER = {"optimization": "needs the encoder"}  # what is said to who has none


@pytest.fixture(params=ATTACKS)
def name(request):
    return request.param


@cache
def done(name):
    """The fitted attack, its victim, and what was said on the way."""
    told: list[tuple] = []
    return *fitted(ATTACKS[name], progress=lambda *line: told.append(line)), told


class Watched:
    """A question for whether to stop, which notes how many images were encoded since it was asked last."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked, self.encoded, self.most, self.stop_at = 0, 0, 0, stop_at

    def __call__(self) -> bool:
        self.asked, self.encoded = self.asked + 1, 0
        return self.asked == self.stop_at

    def watch(self, model: SplitModel) -> SplitModel:
        def note(_module, _given, out) -> None:
            self.encoded += len(out)
            self.most = max(self.most, self.encoded)

        model.edge.register_forward_hook(note)
        return model


def test_it_asks_whether_to_stop_all_the_time_and_then_stops(name):
    config, some, watched = ATTACKS[name], images(700), Watched()
    if hasattr(config, "epochs"):
        config = replace(config, epochs=1)
    build(config).fit(Observer(watched.watch(victim()), some), should_stop=watched)
    assert watched.most <= 512  # of 630 to learn from: never a whole pass
    for stop_at in (1, watched.asked // 2):  # while a thread computes it asks now more and now less often
        with pytest.raises(Interrupted, match="the attack was stopped"):
            build(config).fit(Observer(victim(), some), should_stop=Watched(stop_at))


@pytest.mark.parametrize("name", [name for name in ATTACKS if build(ATTACKS[name]).most_images is not None])
def test_while_it_works_image_by_image_it_asks_in_every_step(name):
    attack, model, _ = done(name)
    z = model.encode(images(3, seed=1).float(), torch.Generator().manual_seed(0))
    watched = Watched()
    assert torch.equal(attack.reconstruct(z, should_stop=watched), attack.reconstruct(z))
    assert watched.asked >= 4
    with pytest.raises(Interrupted):
        attack.reconstruct(z, should_stop=Watched(2))


@pytest.mark.parametrize("decomposition", ["svd", "eigh"])
def test_a_decomposition_that_takes_long_is_left(monkeypatch, decomposition):
    """Nothing can stop LAPACK; whoever waits for it goes all the same."""
    begun, let_go = threading.Event(), threading.Event()
    monkeypatch.setattr(torch.linalg, decomposition, lambda *_, **__: begun.set() or let_go.wait(60))
    if decomposition == "eigh":
        monkeypatch.setattr("sfumato.attacks.linear._EXACT", 0)
    seen = observer()
    try:
        with pytest.raises(Interrupted):
            build(ATTACKS["ridge"]).fit(seen, should_stop=begun.is_set)
        assert not let_go.is_set()
    finally:
        let_go.set()


def test_at_its_deadline_it_ends_with_what_it_has(name, monkeypatch):
    monkeypatch.setattr("sfumato.attacks.base._AT_LEAST", 0.0)
    some, watched, whole = images(700), Watched(), Watched()

    class Late(type(build(ATTACKS[name]))):
        def _step(self, learner, turn):  # of those that train
            self.deadline = time.monotonic()
            return super()._step(learner, turn)

    attack = Late(ATTACKS[name])
    if not hasattr(attack.config, "epochs"):
        attack.deadline = time.monotonic()
    attack.fit(Observer(watched.watch(victim()), some), should_stop=watched)
    if hasattr(attack.config, "epochs"):
        assert len(attack.history) == 1
    else:
        build(ATTACKS[name]).fit(Observer(victim(), some), should_stop=whole)
        assert watched.asked < whole.asked
    assert attack.outcome.reason
    assert attack.reconstruct(torch.rand(2, 4, 4, 4)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", LEARNED)
def test_a_training_that_cannot_even_begin_until_its_deadline_says_so(name):
    attack = build(ATTACKS[name])
    attack.deadline = time.monotonic()
    with pytest.raises(TooSlow):
        attack.fit(observer())


def test_with_time_enough_a_deadline_changes_nothing():
    z = torch.rand(20, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for name in ("ridge", "nearest"):
        attack = build(ATTACKS[name])
        attack.deadline = time.monotonic() + 1e6
        assert torch.equal(attack.fit(observer()).reconstruct(z), build(ATTACKS[name]).fit(observer()).reconstruct(z))


def test_it_reconstructs_and_measures_image_by_image(name):
    attack, model, _ = done(name)
    unseen = images(60, seed=1)
    seen = []

    def release(x, noise):
        seen.append(model.encode(x, noise))
        return seen[-1]

    found = invert(attack, model, unseen, release=release)
    index = found.index
    assert index.tolist() == chosen_images(60, attack.most_images, 0).tolist()
    x, x_hat = unseen.float(index), torch.cat([attack.reconstruct(z) for z in seen])
    for measure in (mse, psnr, ssim):
        assert torch.allclose(getattr(found, measure.__name__), measure(x, x_hat), atol=1e-5)
    assert torch.equal(found.pixels, x_hat[:16].mul(255).round().byte())
    assert 0 <= float(x_hat.min()) <= float(x_hat.max()) <= 1
    assert found.means()["mse"] == pytest.approx(float(found.mse.mean()), rel=1e-5)
    assert attack.outcome.reason
    assert attack.outcome.held_out_mse > 0
    assert all(isinstance(value, torch.Tensor) for value in attack.weights().values())


def test_the_seed_decides_everything(name):
    attack, model, _ = done(name)
    z = model.encode(images(5, seed=1).float(), torch.Generator().manual_seed(0))
    assert torch.equal(attack.reconstruct(z), fitted(ATTACKS[name])[0].reconstruct(z))


def test_images_do_not_depend_on_their_batch(name):
    attack, model, _ = done(name)
    z = model.encode(images(4, seed=1).float(), torch.Generator().manual_seed(0))
    whole = attack.reconstruct(z)
    single = torch.cat([attack.reconstruct(one) for one in z.split(1)])
    assert torch.allclose(whole, single, atol=2e-3)
    assert attack.reconstruct(z).shape == (4, 1, 8, 8)


def test_it_says_how_far_it_is(name):
    told = done(name)[2]
    assert told[-1][0] <= told[-1][1]
    for _, _, figures in told:
        assert figures["mse"] >= 0
        assert math.isfinite(figures["held_out_mse"])


def test_before_it_is_fitted_it_says_so(name):
    attack = build(ATTACKS[name])
    for ask in (lambda: attack.reconstruct(torch.zeros(1, 4, 4, 4)), attack.weights):
        with pytest.raises(NotFittedError, match=r"call fit\(observer\) first"):
            ask()


class Opaque(torch.nn.Module):
    """An encoder outside of PyTorch, as an ONNX session is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.detach().numpy().reshape(len(x), 1, 4, 2, 4, 2).mean((3, 5))
        return torch.from_numpy(pooled.repeat(4, axis=1))


def test_an_encoder_without_gradient_is_attacked(name):
    model = SplitModel(Opaque(), Channel(noise_std=0.05), torch.nn.Identity())
    watched = Observer(model, images(60))
    assert not watched.white_box
    attack = build(ATTACKS[name]).fit(watched)
    assert float(invert(attack, model, images(10, seed=1)).mse.mean()) > 0


def test_few_pairs_are_enough_for_those_that_need_no_encoder(name):
    watched = observe(victim(), images(60), Knowledge(pairs=20))
    if name in WITHOUT_ENCODER:
        with pytest.raises(ConfigError, match=f"the {name} attack {WITHOUT_ENCODER[name]}"):
            build(ATTACKS[name]).fit(watched)
    else:
        assert build(ATTACKS[name]).fit(watched).reconstruct(torch.rand(2, 4, 4, 4)).shape == (2, 1, 8, 8)


def test_the_white_box_is_differentiable_and_adds_no_noise():
    watched = observer(noise_std=5.0)
    x = watched.pixels(torch.arange(3)).requires_grad_()
    z_hat = watched.features(x)
    assert torch.equal(z_hat, watched.features(x))
    (slope,) = torch.autograd.grad(z_hat.sum(), x)
    assert float(slope.abs().sum()) > 0


def test_an_attack_image_by_image_goes_on_where_it_was_stopped(tmp_path):
    attack, model, _ = done("optimization")
    unseen, state = images(60, seed=1), tmp_path / "reconstructed"
    whole = invert(attack, model, unseen)
    with pytest.raises(Interrupted):
        invert(attack, model, unseen, state=state, should_stop=state.exists)  # in the middle of the second part
    counted: list[tuple[int, int]] = []
    resumed = invert(attack, model, unseen, state=state, progress=lambda *place: counted.append(place))
    assert counted == [(32, 40), (40, 40)]  # the first 16 were there
    assert all(torch.equal(value, vars(resumed)[name]) for name, value in vars(whole).items())
