"""What holds for every attack of the registry, trained or not."""

import math

import pytest
import torch
from attack_cases import ATTACKS, fitted, images, observer, victim

from sfumato import attacks
from sfumato.attacks import Knowledge, Observer, build, chosen_images, invert, observe
from sfumato.errors import ConfigError, Interrupted, NotFittedError
from sfumato.metrics import mse, psnr, ssim
from sfumato.split import Channel, SplitModel

WITHOUT_ENCODER = {"optimization": "needs the encoder"}  # what is said to who has none


@pytest.fixture(params=ATTACKS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def done():
    return {name: fitted(config) for name, config in ATTACKS.items()}


@pytest.fixture(scope="module")
def again():
    """The same once more, with what was said on the way."""
    found = {}
    for name, config in ATTACKS.items():
        told: list[tuple] = []
        attack, _ = fitted(config, progress=lambda *line, told=told: told.append(line))
        found[name] = attack, told
    return found


def test_every_attack_of_the_registry_has_a_row_here():
    assert list(attacks.ATTACKS) == list(ATTACKS)


def test_it_reconstructs_and_measures_image_by_image(done, name):
    attack, model = done[name]
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


def test_the_seed_decides_everything(done, again, name):
    attack, model = done[name]
    z = model.encode(images(5, seed=1).float(), torch.Generator().manual_seed(0))
    assert torch.equal(attack.reconstruct(z), again[name][0].reconstruct(z))


def test_images_do_not_depend_on_their_batch(done, name):
    attack, model = done[name]
    z = model.encode(images(4, seed=1).float(), torch.Generator().manual_seed(0))
    whole = attack.reconstruct(z)
    single = torch.cat([attack.reconstruct(one) for one in z.split(1)])
    assert torch.allclose(whole, single, atol=2e-3)
    assert attack.reconstruct(z).shape == (4, 1, 8, 8)


def test_it_says_how_far_it_is(again, name):
    told = again[name][1]
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


def test_an_attack_image_by_image_goes_on_where_it_was_stopped(done, tmp_path):
    attack, model = done["optimization"]
    unseen, state = images(60, seed=1), tmp_path / "reconstructed"
    whole = invert(attack, model, unseen)
    with pytest.raises(Interrupted):
        invert(attack, model, unseen, state=state, should_stop=lambda: True)
    counted: list[tuple[int, int]] = []
    resumed = invert(attack, model, unseen, state=state, progress=lambda *place: counted.append(place))
    assert counted == [(32, 40), (40, 40)]  # the first 16 were there
    assert all(torch.equal(value, vars(resumed)[name]) for name, value in vars(whole).items())
