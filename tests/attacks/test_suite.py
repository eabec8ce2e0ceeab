"""The suite: closed forms beside every trained attack, the strongest by its error, on a stated part of the images."""

import torch
from torch import nn

from sfumato import Channel, SplitModel, attacks
from sfumato.attacks import DecoderConfig, NearestConfig, Observer, RidgeConfig, figures_of, judged, suite_verdict
from sfumato.data import ImageSet

IMAGES = ImageSet(
    torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(300) % 10,
    tuple("0123456789"),
)


def observer(width: int) -> Observer:
    torch.manual_seed(0)
    edge = nn.Sequential(nn.Flatten(), nn.Linear(16, width))
    return Observer(SplitModel(edge, Channel(noise_std=0.01), nn.Identity()), IMAGES)


def test_what_is_given_is_not_run_twice():
    names = [attacks.name_of(one) for one in attacks.with_closed_forms(NearestConfig(draws=2), DecoderConfig(), seed=3)]
    assert names == ["nearest", "decoder", "ridge"]
    nearest, _, ridge = attacks.with_closed_forms(NearestConfig(draws=2), DecoderConfig(), seed=3)
    assert (nearest.draws, ridge.seed) == (2, 3)


def test_nearest_keeps_no_more_values_than_it_may_and_says_so():
    seen = observer(32)
    attack = attacks.build(NearestConfig(draws=1, values=32 * 50)).fit(seen)
    assert attack.weights()["features"].numel() <= 32 * 50
    assert attack.outcome.reason.endswith(", from 50 of the attacker's 300 images")
    whole = attacks.build(NearestConfig(draws=1)).fit(seen)
    assert len(whole.weights()["features"]) == 300
    assert "from" not in whole.outcome.reason


def test_ridge_says_from_how_many_images_it_learned():
    part = attacks.build(RidgeConfig(draws=1, size=20)).fit(observer(64))
    assert part.outcome.reason.endswith(", from 50 of the attacker's 300 images")  # 20 to learn from, 30 to choose on
    assert "from" not in attacks.build(RidgeConfig(draws=1)).fit(observer(64)).outcome.reason


def test_a_stored_attack_is_judged_by_the_rule_of_the_day_it_is_shown():
    said = {"converged": True, "reason": "the last 1 epochs gained 0.0%", "trivial_mse": 1.0}
    flat, falling = ([{"held_out_mse": value} for value in errors] for errors in ([0.9] + 15 * [0.5], [0.9, 0.7, 0.5]))
    assert judged({"decoder": figures_of(said, flat, test={"mse": 0.5})})["decoder"].converged is True
    verdict = judged({"decoder": figures_of(said, falling, test={"mse": 0.5})})["decoder"]
    assert verdict == (False, "the last 1 epochs still gained 29%; attack for more epochs")


def test_one_attack_that_had_not_converged_weakens_the_whole_result():
    said = {"converged": True, "reason": "", "trivial_mse": 1.0}
    flat = figures_of(said, [{"held_out_mse": value} for value in [0.9] + 15 * [0.5]], test={"mse": 0.5})
    closed = figures_of(said, [], test={"mse": 0.49})
    assert suite_verdict({"attacks": {"decoder": flat, "nearest": closed}}).converged is True
    behind = suite_verdict({"attacks": {"decoder": flat, "nearest": closed | {"test": {"mse": 0.4}}}})
    assert behind == (False, "its error is 1.25 times that of the nearest baseline, which takes seconds")
    old = {name: value for name, value in flat.items() if name not in ("history", "trivial_mse")}
    assert suite_verdict({"attacks": {"decoder": old}}).converged is None


def test_stored_figures_of_an_attack_that_is_gone_are_judged_as_before():
    kept = {"test": {"mse": 0.03}, "converged": True, "reason": "", "history": 16 * [0.03], "trivial_mse": 0.07}
    assert judged({"latent": kept})["latent"].converged
    assert attacks.strongest({"decoder": 0.031, "latent": 0.03, "cloud-only": 0.01}) == "latent"
