import pytest
import torch
from torch import nn

from sfumato.errors import ConfigError, FeatureError
from sfumato.models import Critic, count_parameters


def test_it_is_the_published_network_at_32():
    critic = Critic((3, 32, 32))
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size, m.stride) for m in convolutions] == [
        (3, 64, (5, 5), (2, 2)),
        (64, 128, (5, 5), (2, 2)),
        (128, 256, (5, 5), (2, 2)),
        (256, 1, (4, 4), (1, 1)),
    ]
    assert [m.num_features for m in critic.modules() if isinstance(m, nn.InstanceNorm2d)] == [128, 256]
    slopes = [m.negative_slope for m in critic.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2, 0.2, 0.2]
    by_hand = (3 * 25 + 1) * 64 + (64 * 25 + 1 + 2) * 128 + (128 * 25 + 1 + 2) * 256 + 256 * 16 + 1
    assert count_parameters(critic) == by_hand


@pytest.mark.parametrize(
    ("image", "stages", "last_map"),
    [
        ((3, 64, 64), 3, (5, 5)),
        ((3, 48, 48), 3, (3, 3)),
        ((3, 32, 32), 3, (1, 1)),
        ((1, 28, 28), 3, (1, 1)),
        ((3, 16, 16), 2, (1, 1)),
        ((1, 8, 8), 1, (1, 1)),
        ((3, 5, 7), 1, (1, 1)),
        ((1, 1, 1), 1, (1, 1)),
        ((2, 33, 17), 2, (6, 2)),
    ],
)
def test_every_image_gets_one_score(image, stages, last_map):
    critic = Critic(image, width=4)
    x = torch.rand(3, *image, requires_grad=True)
    assert critic.body(x).shape == (3, 1, *last_map)
    scores = critic(x)
    assert scores.shape == (3,)
    assert torch.allclose(scores, critic.body(x).mean((1, 2, 3)))
    assert sum(isinstance(m, nn.LeakyReLU) for m in critic.modules()) == stages
    scores.sum().backward()
    assert all(p.grad is not None for p in critic.parameters())


def test_the_score_of_an_image_does_not_depend_on_its_neighbours():
    critic = Critic((3, 16, 16), width=4).train()
    x = torch.rand(5, 3, 16, 16)
    assert torch.allclose(critic(x), torch.cat([critic(one[None]) for one in x]), atol=1e-6)
    x_grad = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x_grad)[2], x_grad)
    assert float(slope[2].abs().sum()) > 0
    assert float(slope[[0, 1, 3, 4]].abs().sum()) == 0


def test_mistakes():
    with pytest.raises(ConfigError, match="image_shape is"):
        Critic((8, 8))
    with pytest.raises(ConfigError, match="width is 0; give at least 1"):
        Critic((3, 8, 8), width=0)
    with pytest.raises(FeatureError, match=r"built for images \(3, 8, 8\), got \(1, 8, 8\)"):
        Critic((3, 8, 8), width=4)(torch.zeros(1, 1, 8, 8))
