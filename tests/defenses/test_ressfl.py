"""The inner adversary: both players' gradients equal two separate passes; each player gets what it wants."""

import copy

import pytest
import torch
from defense_cases import IMAGE, batch_of, images, split_model
from torch.nn.functional import cross_entropy

from sfumato.defenses import ResSFL
from sfumato.errors import ConfigError, NotFittedError
from sfumato.metrics import ssim


@pytest.mark.parametrize(("threshold", "active"), [(-1.0, True), (1.0, False)])
def test_one_pass_gives_the_gradients_of_two(threshold, active):
    x, y = images(8)
    one = ResSFL(alpha=0.7, threshold=threshold, width=4, blocks=1)
    model = split_model([one], noise_std=0.0).eval()
    one.eval()
    batch = batch_of(model, x, y)
    value = one.penalty(batch)
    value.backward(inputs=[*model.edge.parameters(), *one.adversary.parameters()])

    other = copy.deepcopy(one.adversary)
    other.zero_grad()
    similarity = ssim(x, other(model.encode(x))).mean()
    assert float(value.detach()) == pytest.approx(max(0.0, 0.7 * (float(similarity.detach()) - threshold)), abs=1e-6)
    theirs = torch.autograd.grad(similarity, [*model.edge.parameters(), *other.parameters()])
    edge = list(model.edge.parameters())
    for parameter, expected in zip(edge, theirs[: len(edge)], strict=True):
        assert torch.allclose(parameter.grad, 0.7 * active * expected, atol=1e-7)  # the encoder lowers SSIM, if at all
    for parameter, expected in zip(one.adversary.parameters(), theirs[len(edge) :], strict=True):
        assert torch.allclose(parameter.grad, -expected, atol=1e-7)  # the adversary always raises it


def train(alpha: float, steps: int = 60) -> tuple[float, float]:
    """Train a model against the adversary; the adversary's SSIM in the first and in the last steps."""
    x, y = images(48)
    one = ResSFL(alpha=alpha, threshold=0.0, lr=5e-3, width=8, blocks=1)
    model = split_model([one], noise_std=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for _ in range(steps):
        batch = batch_of(model, x, y)
        loss = cross_entropy(batch.logits, y) + one.penalty(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one.on_step(batch)
        seen.append(one.report()["ssim"])
    return sum(seen[:5]) / 5, sum(seen[-5:]) / 5


def test_the_adversary_learns_and_the_encoder_holds_it_down():
    first, unhindered = train(alpha=0.0)
    _, hindered = train(alpha=5.0)
    assert unhindered > first + 0.1
    assert hindered < unhindered - 0.1


def test_bad_input():
    with pytest.raises(ConfigError, match="reward leaking"):
        ResSFL(alpha=-1.0)
    with pytest.raises(ConfigError, match="SSIM between -1 and 1"):
        ResSFL(threshold=2.0)
    with pytest.raises(NotFittedError, match="attach"):
        ResSFL().optimizers()
    assert IMAGE == (1, 16, 16)
