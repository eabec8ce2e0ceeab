"""What is the decoding attack's own; the rest is in the contract of all attacks."""

import copy

import pytest
import torch
from attack_cases import ATTACKS, images, observer

from sfumato.attacks import DecoderAttack, DecoderConfig, RidgeAttack, invert
from sfumato.attacks.learned import Turn


def test_a_step_is_adam_with_weight_decay_on_the_mean_squared_error():
    """Against a plain loop, which shares no line with it."""
    attack = DecoderAttack(DecoderConfig(width=4, blocks=0, lr=0.01, weight_decay=0.1, precision="fp32"))
    learner = attack._learner(observer())
    plain = copy.deepcopy(learner.net)
    adam = torch.optim.Adam(plain.parameters(), 0.01, weight_decay=0.1)
    x = images(8).float()
    z = torch.rand(8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for number in range(3):
        (error,) = attack._step(learner, Turn(number, x, z, False, lambda _: torch.Generator()))
        expected = ((plain(z) - x) ** 2).sum() / x.numel()
        assert torch.allclose(error, expected.detach(), rtol=1e-4)
        adam.zero_grad()
        expected.backward()
        adam.step()
    for ours, theirs in zip(learner.net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-3)  # Adam magnifies rounding of small gradients; a step is 1e-2


def test_it_begins_with_what_the_linear_attack_reads():
    watched, unseen = observer(noise_std=0.01), images(50, seed=1)
    linear = RidgeAttack().fit(watched)
    begun = DecoderAttack(DecoderConfig(epochs=1, width=4, blocks=0, lr=1e-9)).fit(watched)
    expected = float(invert(linear, watched._model, unseen).mse.mean())
    assert float(invert(begun, watched._model, unseen).mse.mean()) == pytest.approx(expected, rel=0.1)


def test_the_learning_rate_follows_a_cosine():
    rates = []

    class Watching(DecoderAttack):
        def _step(self, learner, turn):
            rates.append(float(learner.optimizers["optimizer"].param_groups[0]["lr"]))
            return super()._step(learner, turn)

    config = ATTACKS["decoder"]
    assert isinstance(config, DecoderConfig)
    Watching(config).fit(observer())
    assert rates[0] == config.lr
    assert abs(rates[12] - config.lr / 2) < 1e-9  # half of 4 epochs of 6 steps
    assert abs(rates[18] - config.lr * (0.5 - 0.5**1.5)) < 1e-9
    assert 0 < rates[-1] < 0.01 * config.lr
