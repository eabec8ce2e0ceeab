from dataclasses import replace

import pytest
import torch

from sfumato.attacks import DecoderAttack, DecoderConfig, Observer, invert
from sfumato.attacks.decoder import _outcome
from sfumato.data import ImageSet
from sfumato.errors import CheckpointError, ConfigError, NotFittedError
from sfumato.split import Channel, SplitModel

CONFIG = DecoderConfig(epochs=4, batch_size=32, width=8, blocks=1, lr=5e-3)


class Recorder(torch.nn.Module):
    """A linear encoder of 2x2 patches that keeps its generators' states out of sight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layer(x))


def victim(noise_std: float = 0.05, **options: object) -> SplitModel:
    torch.manual_seed(0)
    channel = Channel(noise_std=noise_std, **options)  # type: ignore[arg-type]
    return SplitModel(Recorder(), channel, torch.nn.Flatten()).eval()


def images(count: int, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    return ImageSet((smooth * 255).to(torch.uint8), torch.zeros(count, dtype=torch.int64), ("only",))


def fitted(config: DecoderConfig = CONFIG, noise_std: float = 0.05) -> tuple[DecoderAttack, SplitModel]:
    model = victim(noise_std)
    return DecoderAttack(config).fit(Observer(model, images(200))), model


def test_it_beats_the_mean_image_by_far_where_little_noise_protects():
    attack, model = fitted(replace(CONFIG, epochs=20), noise_std=0.01)
    unseen = images(100, seed=1)
    x = unseen.float()
    trivial = float((x - images(200).float().mean(0)).square().mean())
    result = invert(attack, model, unseen)
    assert result.mse < 0.25 * trivial
    assert result.mse == pytest.approx(float((result.originals - result.redrawn).square().mean()), rel=0.5)
    assert result.originals.shape == result.redrawn.shape == (16, 1, 8, 8)


def test_more_noise_leaves_more_error():
    errors = []
    for noise in (0.02, 0.2, 2.0):
        attack, model = fitted(replace(CONFIG, epochs=10), noise)
        errors.append(invert(attack, model, images(100, seed=1)).mse)
    assert errors == sorted(errors)


def test_the_observer_hands_out_what_leaves_the_device_with_fresh_noise():
    model = victim(noise_std=0.5, clip_norm=1.0)
    observer = Observer(model, images(10))
    x = observer.pixels(torch.arange(10))
    first, second = observer.encode(x), observer.encode(x)
    assert not torch.equal(first, second)
    released = torch.stack([observer.encode(x) for _ in range(400)])
    clean = model.features(x).detach()
    assert float(clean.flatten(1).norm(dim=1).max()) <= 1.0 + 1e-5  # clipped before it leaves
    assert float((released.mean(0) - clean).abs().max()) < 0.5 * 5 / 400**0.5
    assert float(released.std(0).mean()) == pytest.approx(0.5, rel=0.05)


def test_interrupted_after_any_epoch_it_ends_with_the_same_network(tmp_path):
    whole, _ = fitted()

    class Killed(Exception):
        pass

    def kill(done: int, _total: int, _figures: dict) -> None:
        if done == 2:
            raise Killed

    state = tmp_path / "state"
    with pytest.raises(Killed):
        DecoderAttack(CONFIG).fit(Observer(victim(), images(200)), state=state, progress=kill)
    resumed = DecoderAttack(CONFIG).fit(Observer(victim(), images(200)), state=state)
    assert whole.net is not None
    assert resumed.net is not None
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name
    assert whole.history == resumed.history


def test_a_state_of_another_attack_is_refused(tmp_path):
    state = tmp_path / "state"
    DecoderAttack(CONFIG).fit(Observer(victim(), images(200)), state=state)
    with pytest.raises(CheckpointError, match="other settings or images; delete it to start anew"):
        DecoderAttack(replace(CONFIG, lr=1e-3)).fit(Observer(victim(), images(200)), state=state)


def test_convergence_is_judged_on_held_out_errors():
    falling = [1.0 / (epoch + 1) for epoch in range(20)]
    verdict = _outcome(falling, trivial=10.0)
    assert not verdict.converged
    assert "attack for more epochs" in verdict.reason
    flat = [1.0] + [0.1] * 19
    assert _outcome(flat, trivial=10.0).converged
    useless = _outcome(flat, trivial=0.1)
    assert not useless.converged
    assert "mean image" in useless.reason
    assert not _outcome([0.5], trivial=10.0).converged  # one epoch shows nothing


def test_a_single_epoch_is_flagged():
    attack, _ = fitted(replace(CONFIG, epochs=1))
    assert attack.outcome is not None
    assert not attack.outcome.converged


def test_mistakes():
    with pytest.raises(NotFittedError, match=r"call fit\(observer\) first"):
        DecoderAttack().reconstruct(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ConfigError, match="at least 2 images"):
        DecoderAttack(CONFIG).fit(Observer(victim(), images(1)))
    with pytest.raises(ConfigError, match="hold_out is 0"):
        DecoderConfig(hold_out=0.0)
