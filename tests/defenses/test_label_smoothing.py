"""Label smoothing equals PyTorch's own."""

import pytest
from defense_cases import batch_of, images, split_model
from torch.nn.functional import cross_entropy

from sfumato.defenses import LabelSmoothing
from sfumato.errors import ConfigError


def test_task_loss_plus_penalty_is_pytorchs_smoothed_cross_entropy():
    x, y = images(12)
    batch = batch_of(split_model([]), x, y)
    penalty = LabelSmoothing(0.2).penalty(batch)
    expected = cross_entropy(batch.logits, y, label_smoothing=0.2)
    assert float((cross_entropy(batch.logits, y) + penalty).detach()) == pytest.approx(float(expected.detach()))


def test_bad_values():
    with pytest.raises(ConfigError, match="between -1 and 1"):
        LabelSmoothing(1.0)
