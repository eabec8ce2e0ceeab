"""Every defence is one row of a table and passes the same suite, alone and with CEM."""

import json

import pytest
import torch
from defense_cases import DEFENSES, IMAGE, batch_of, epoch_of, images, split_model

from sfumato import data
from sfumato.attacks import Observer
from sfumato.data import ImageSet
from sfumato.defenses import Defense
from sfumato.training import TrainConfig, build_model, train_run
from sfumato.training.run import load_run


@pytest.fixture(params=DEFENSES)
def defenses(request: pytest.FixtureRequest) -> list[Defense]:
    return DEFENSES[request.param]()


def test_it_says_truly_what_it_does(defenses):
    for one in defenses:
        assert (one.transform() is not None) == one.changes_released_features
        assert bool(one.model_options()) == one.changes_architecture
    split_model(defenses)
    for one in defenses:
        assert bool(one.optimizers()) == one.trains_adversary


def test_penalties_are_finite_scalars_that_reach_the_encoder(defenses):
    x, y = images()
    model = split_model(defenses)
    for one in defenses:
        one.on_epoch(epoch_of(model, x, y))
    for one in defenses:
        one.before_step(0.5, 0.01)
    batch = batch_of(model, x, y)
    penalties = [value for one in defenses if (value := one.penalty(batch)) is not None]
    for value in penalties:
        assert value.ndim == 0
        assert torch.isfinite(value)
        gradients = torch.autograd.grad(value, list(model.edge.parameters()), retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_classifier_and_attacker_get_the_same_feature(defenses):
    """What changes the feature changes it for both, in evaluation as in training."""
    x, _ = images()
    model = split_model(defenses).eval()
    pixels = ImageSet((x * 255).to(torch.uint8), torch.zeros(len(x), dtype=torch.int64), ("a",))
    seen = Observer(model, pixels).release(x, torch.Generator().manual_seed(3))
    with torch.no_grad():
        out = model.outputs(x, torch.Generator().manual_seed(3))
    assert torch.equal(seen, out.released)
    assert torch.equal(model.cloud(seen.clone()), out.logits)


def test_state_dict_round_trip_gives_the_same_penalty(defenses, request):
    x, y = images()
    model = split_model(defenses)
    for one in defenses:
        one.on_epoch(epoch_of(model, x, y))
    batch = batch_of(model, x, y)
    fresh = DEFENSES[request.node.callspec.params["defenses"]]()
    split_model(fresh)
    for old, new in zip(defenses, fresh, strict=True):
        new.load_state_dict(old.state_dict())
        before, after = old.penalty(batch), new.penalty(batch)
        assert (before is None) == (after is None)
        if before is not None:
            assert torch.equal(before, after)


def test_reports_are_plain_values(defenses):
    x, y = images()
    model = split_model(defenses)
    for one in defenses:
        one.on_epoch(epoch_of(model, x, y))
        json.dumps(one.report(), allow_nan=False)


TINY = TrainConfig(
    data="digits",
    cut=2,
    width=8,
    limit=120,
    test_limit=30,
    epochs=4,
    batch_size=54,
    clusters_per_class=1,
    noise_std=0.1,
    device="cpu",
    watch=False,
)
# A threshold that every SSIM exceeds: otherwise the adversary, and whether it survives, would not matter.
ADVERSARY = {"width": 4, "blocks": 0, "threshold": -1.0}
OPTIONS = {"ressfl": ADVERSARY, "patrol": ADVERSARY}


@pytest.mark.parametrize(
    ("name", "with_cem"),
    [("patrol", False), *((name, True) for name in ("distcorr", "dropout", "ressfl", "patrol", "label_smoothing"))],
)
def test_killed_in_any_epoch_it_ends_with_the_same_model(tmp_path, name, with_cem):
    """Masks, adversaries, their optimizers and pruned layers survive a checkpoint; the run can be read back."""
    from dataclasses import replace

    config = replace(TINY, defense=name, cem=with_cem, defense_options=OPTIONS.get(name, {}), checkpoint_seconds=0.0)
    undisturbed = train_run(config, tmp_path / "whole")
    for kill_at in (1, 8):  # of 8 steps; pruning happens before step 7, so the last checkpoint is a pruned one

        def on_step(done: int, _total: int, kill_at: int = kill_at) -> None:
            if done == kill_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "killed", on_step=on_step)
    resumed = train_run(config, tmp_path / "killed")
    ours, theirs = load_run(tmp_path / "killed").model.state_dict(), load_run(tmp_path / "whole").model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert resumed["accuracy"] == undisturbed["accuracy"]


def test_a_defence_reaches_the_model_through_the_settings():
    config = TrainConfig(data="digits", size=16, model="vgg11", cut=1, defense="patrol", device="cpu")
    from sfumato.training import build_defenses

    sets = data.load("digits", size=16)
    chosen = build_defenses(config, 10)
    model = build_model(config, sets.train, chosen)
    convolutions = [part for part in model.edge.modules() if isinstance(part, torch.nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [16, 64, 8]
    assert IMAGE[1:] == sets.train.image_shape[1:]
