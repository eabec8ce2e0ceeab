"""What a learned attack saves while it trains."""

import pytest
import torch
from torch import nn

from sfumato.attacks.learned import Learner
from sfumato.errors import CheckpointError, SfumatoWarning


def learner(value=0.0):
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, value)
    optimizers = {"optimizer": torch.optim.Adam(net.parameters())}
    return Learner({"net": net}, optimizers, torch.zeros(1, dtype=torch.float64), planned=3)


def test_where_the_last_checkpoint_is_damaged_the_one_before_it_is_used(tmp_path):
    path, identity = tmp_path / "state", {"config": 1}
    for epoch in (1, 2):
        made = learner(float(epoch))
        made.epoch = epoch
        made.save(path, identity)
    again = learner()
    again.load(path, identity)
    assert (again.epoch, again.planned, again.net.weight[0, 0].item()) == (2, 3, 2.0)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.warns(SfumatoWarning, match="state is damaged .*instead the checkpoint before it is used"):
        again.load(path, identity)
    assert (again.epoch, again.net.weight[0, 0].item()) == (1, 1.0)
    (tmp_path / "state.previous").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="so is state: delete both and run the command again"):
        again.load(path, identity)
