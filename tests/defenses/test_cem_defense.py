"""CEM as a defence: when it refreshes, how it weighs."""

import dataclasses

import pytest
import torch
from defense_cases import batch_of, epoch_of, images, split_model

from sfumato.cem import CEM
from sfumato.defenses import CEMDefense
from sfumato.errors import ConfigError


def test_refresh_every_third_epoch():
    one = CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=1.0, refresh_every=3)
    x, y = images()
    model = split_model([])
    for index in range(7):
        one.on_epoch(epoch_of(model, x, y, index))
    assert one.cem.mixture.refreshes == 3


def test_the_schedule_weighs_the_penalty():
    model = split_model([])
    x, y = images()
    one = CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=2.0, lam_schedule="ramp")
    one.on_epoch(epoch_of(model, x, y))
    batch = batch_of(model, x, y)
    one.before_step(0.5, 0.01)
    value = one.penalty(batch)
    assert value is not None
    assert float(value.detach()) == pytest.approx(
        2.0 * (0.5 / 0.6) * one.cem.competence * float(one.cem(batch.features, y).detach()), rel=1e-5
    )


def test_at_chance_there_is_no_penalty():
    model = split_model([])
    x, y = images()
    one = CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=2.0)
    one.on_epoch(epoch_of(model, x, y))
    one.before_step(0.5, 0.01)
    batch = batch_of(model, x, y)
    for logits, competence in ((0.0, 0.0), (-5.0, 0.0), (9.0, 1.0)):
        said = dataclasses.replace(batch, logits=logits * torch.nn.functional.one_hot(y, 3))
        assert float(one.penalty(said)) == pytest.approx(
            2.0 * competence * float(one.cem(batch.features, y)), rel=1e-3, abs=1e-6
        )


def test_settings_without_meaning():
    with pytest.raises(ConfigError, match="would reward leaking"):
        CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=-1.0)
    with pytest.raises(ConfigError, match="at least 1 epoch"):
        CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=1.0, refresh_every=0)
    with pytest.raises(ConfigError, match="unknown schedule"):
        CEMDefense(CEM(num_classes=3, noise_std=0.1), lam=1.0, lam_schedule="never")
