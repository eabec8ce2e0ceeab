import pytest
import torch
from attack_cases import images, victim

from sfumato import SplitModel
from sfumato.attacks import Observer


def test_the_observer_hands_out_what_leaves_the_device_with_fresh_noise():
    model = victim(noise_std=0.5, clip_norm=1.0)
    observer = Observer(model, images(10))
    x = observer.pixels(torch.arange(10))
    first, second = observer.release(x), observer.release(x)
    assert not torch.equal(first, second)
    released = torch.stack([observer.release(x) for _ in range(400)])
    clean = model.features(x).detach()
    assert float(clean.flatten(1).norm(dim=1).max()) <= 1.0 + 1e-5  # clipped before it leaves
    assert float((released.mean(0) - clean).abs().max()) < 0.5 * 5 / 400**0.5
    assert float(released.std(0).mean()) == pytest.approx(0.5, rel=0.05)


def test_the_encoder_sees_each_of_the_attackers_images_once_and_only_the_noise_is_fresh():
    model, known = victim(noise_std=0.1), images(150)
    observer, seen = Observer(model, known), []
    model.edge.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    rows = torch.tensor([149, 3, 70, 3])
    first, again = (observer.record(rows, torch.Generator().manual_seed(1))[1] for _ in range(2))
    other = observer.record(rows, torch.Generator().manual_seed(2))[1]
    observer.record(torch.arange(150))
    assert sum(seen) == 150
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.no_grad():
        exact = model.encode(known.float(rows), torch.Generator().manual_seed(1))
    torch.testing.assert_close(first, exact)


def test_an_encoder_that_draws_numbers_is_asked_every_time():
    class Random(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1) + torch.randn(len(x), 1)

    model = victim(noise_std=0.0)
    observer, rows = Observer(SplitModel(Random(), model.channel, model.cloud), images(20)), torch.arange(20)
    first, second = (observer.record(rows)[1] for _ in range(2))
    assert not torch.equal(first, second)
