"""What is the GAN attack's own; the rest is in the contract of all attacks."""

from dataclasses import replace

import pytest
import torch
from attack_cases import ATTACKS, images, observer

from sfumato.attacks import GanAttack, GanConfig, gradient_penalty
from sfumato.attacks.learned import Turn
from sfumato.errors import ConfigError
from sfumato.models import Critic

CONFIG = ATTACKS["gan"]
assert isinstance(CONFIG, GanConfig)


def test_the_penalty_of_a_linear_critic_is_known():
    """D(x) = w . x has the gradient w everywhere."""
    w = torch.zeros(1, 4, 4, dtype=torch.float64)
    w[0, 0, 0], w[0, 1, 2] = 3.0, 4.0
    x, x_hat = torch.rand(2, 5, 1, 4, 4, dtype=torch.float64)
    mix = torch.rand(5, 1, 1, 1, dtype=torch.float64)
    for scale, expected in ((1.0, 16.0), (0.2, 0.0), (0.1, 0.25)):  # |w| is 5

        def critic(images: torch.Tensor, scale: float = scale) -> torch.Tensor:
            return scale * (images * w).sum((1, 2, 3))

        assert gradient_penalty(critic, x, x_hat, mix).item() == pytest.approx(expected, abs=1e-12)


def test_the_penalty_is_taken_between_the_two_images():
    """D(x) = |x|^2 / 2 has the gradient x."""
    x, x_hat = torch.full((3, 1, 1, 1), 6.0), torch.full((3, 1, 1, 1), 2.0)
    mix = torch.tensor([0.0, 0.25, 1.0]).reshape(3, 1, 1, 1)  # 2, 3, 6

    def critic(images: torch.Tensor) -> torch.Tensor:
        return images.square().sum((1, 2, 3)) / 2

    assert gradient_penalty(critic, x, x_hat, mix).item() == pytest.approx((1 + 4 + 25) / 3)


def test_the_penalty_reaches_the_weights_of_the_critic():
    """Against finite differences in float64, along a random direction of all weights."""
    torch.manual_seed(0)
    critic = Critic((2, 16, 16), width=3).double()
    x, x_hat = torch.rand(2, 4, 2, 16, 16, dtype=torch.float64)
    mix = torch.rand(4, 1, 1, 1, dtype=torch.float64)
    parameters = list(critic.parameters())
    direction = [torch.randn_like(parameter) for parameter in parameters]
    slopes = torch.autograd.grad(gradient_penalty(critic, x, x_hat, mix), parameters, allow_unused=True)
    along = sum(float((d * s).sum()) for d, s in zip(direction, slopes, strict=True) if s is not None)

    def moved(distance: float) -> float:
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter += distance * d
        value = gradient_penalty(critic, x, x_hat, mix).item()
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter -= distance * d
        return value

    h = 1e-6
    assert abs(along) > 1e-3
    assert along == pytest.approx((moved(h) - moved(-h)) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_the_generator_moves_on_every_nth_batch_and_the_critic_on_each(every):
    moved: list[tuple[bool, bool]] = []

    class Watching(GanAttack):
        def _step(self, learner, turn):
            before = {name: [p.clone() for p in net.parameters()] for name, net in learner.networks.items()}
            out = super()._step(learner, turn)
            moved.append(
                tuple(
                    any(
                        not torch.equal(p, old)
                        for p, old in zip(learner.networks[name].parameters(), olds, strict=True)
                    )
                    for name, olds in before.items()
                )
            )
            return out

    Watching(replace(CONFIG, epochs=2, critic_steps=every)).fit(observer())  # 2 epochs of 6 batches
    assert [net for net, _ in moved] == [number % every == 0 for number in range(1, 13)]
    assert all(critic for _, critic in moved)


def step_of(config: GanConfig, networks: dict[str, torch.nn.Module]):
    """One step from given networks; gives the figures and the gradients that it left."""
    attack = GanAttack(config)
    learner = attack._learner(observer())
    for name, network in networks.items():
        learner.networks[name].load_state_dict(network.state_dict())
    x = images(8).float()
    z = torch.rand(8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    out = attack._step(learner, Turn(0, x, z, False, lambda _: torch.Generator().manual_seed(7)))
    return out, learner, x, z


def test_the_two_losses_as_the_docstring_has_them():
    """Against the equations written out; learning rates of next to 0 leave the networks where they were."""
    config = replace(CONFIG, critic_steps=1, mse_weight=20.0, gradient_penalty=7.0, generator_lr=1e-12, critic_lr=1e-12)
    learner = GanAttack(config)._learner(observer())
    net, critic = (learner.networks[name] for name in ("net", "critic"))
    (error, gap), after, x, z = step_of(config, {"net": net, "critic": critic})
    x_hat = net(z)
    real, reconstructed = critic(x), critic(x_hat)
    mix = torch.rand(8, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    between = (x_hat + mix * (x - x_hat)).detach().requires_grad_()
    lengths = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0].square().sum((1, 2, 3)).sqrt()
    critic_loss = reconstructed.mean() - real.mean() + 7 * ((lengths - 1) ** 2).mean()
    mean_error = ((x_hat - x) ** 2).mean()
    assert float(error) == pytest.approx(mean_error.item(), rel=1e-4)
    assert float(gap) == pytest.approx((real.mean() - reconstructed.mean()).item(), rel=1e-3, abs=1e-6)
    for name, loss in (("critic", critic_loss), ("net", -reconstructed.mean() + 20 * mean_error)):
        network = learner.networks[name]
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for parameter, gradient in zip(after.networks[name].parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_both_rates_follow_the_cosine_and_adam_is_as_published():
    seen = []

    class Watching(GanAttack):
        def _step(self, learner, turn):
            groups = {name: optimizer.param_groups[0] for name, optimizer in learner.optimizers.items()}
            seen.append({name: float(group["lr"]) for name, group in groups.items()})
            assert all(group["betas"] == (0.5, 0.999) and group["weight_decay"] == 0 for group in groups.values())
            return super()._step(learner, turn)

    Watching(replace(CONFIG, generator_lr=0.01, critic_lr=0.03)).fit(observer())
    assert seen[0] == {"net_optimizer": 0.01, "critic_optimizer": 0.03}
    assert seen[12]["net_optimizer"] == pytest.approx(0.005)  # half of 4 epochs of 6 steps
    assert seen[12]["critic_optimizer"] == pytest.approx(0.015)


def test_the_defaults_are_the_published_ones():
    config = GanConfig()
    assert (config.epochs, config.critic_steps, config.mse_weight, config.gradient_penalty) == (150, 10, 1500, 10)
    assert (config.generator_lr, config.critic_lr, config.width, config.blocks) == (5e-4, 5e-3, 64, 8)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"critic_steps": 0}, "critic_steps is 0; give at least 1"),
        ({"mse_weight": -1.0}, "mse_weight is -1.0; give at least 0"),
        ({"gradient_penalty": -1.0}, "gradient_penalty is -1.0; give at least 0"),
    ],
)
def test_meaningless_settings_are_refused(setting, text):
    with pytest.raises(ConfigError, match=text):
        GanConfig(**setting)
