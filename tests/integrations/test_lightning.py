"""CEM as a Lightning callback ends where the loop written by hand does."""

import logging
import warnings

import pytest
import torch
from loop_cases import BATCH, EPOCHS, LAM, LR, PARTS, by_hand, data, differ, equal, plug_in, split_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from sfumato.errors import ConfigError

pl = pytest.importorskip("pytorch_lightning")
from sfumato.integrations.lightning import CEMCallback  # noqa: E402

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")


class Module(pl.LightningModule):
    """As a user has it; it knows nothing of CEM."""

    def __init__(self, *, as_mapping=False):
        super().__init__()
        self.model = split_model()
        self.as_mapping = as_mapping

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        return {"loss": loss} if self.as_mapping else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


def fit(module, callback, *, ckpt_path=None, **options):
    loader = DataLoader(TensorDataset(*data()), batch_size=BATCH)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accumulate_grad_batches=PARTS, callbacks=[callback], accelerator="cpu", devices=1,
        **(quiet | options),
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("as_mapping", [False, True])
def test_it_ends_where_the_loop_by_hand_does(as_mapping):
    module, callback = Module(as_mapping=as_mapping), CEMCallback(plug_in(), lam=LAM)
    trainer = fit(module, callback)
    equal(module.model.state_dict(), by_hand())
    differ(module.model.state_dict(), by_hand(0.0))
    assert "training_step" not in vars(module)
    assert not module.model.edge._forward_hooks
    assert float(trainer.callback_metrics["cem_information"]) == pytest.approx(callback.protection.cem.information)


def test_the_mixture_is_in_the_checkpoint(tmp_path):
    module, callback = Module(), CEMCallback(plug_in(), lam=LAM)
    trainer = fit(module, callback)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    (own,) = [value for key, value in state.items() if key.startswith("CEMCallback")]
    again = CEMCallback(plug_in())
    again.load_state_dict(own)
    assert again.protection.cem.information == callback.protection.cem.information


def test_bfloat16_and_a_refresh_set_of_ones_own():
    x, y = data()
    module = Module()
    callback = CEMCallback(plug_in(), lam=LAM, data=[(x, y)])
    fit(module, callback, precision="bf16-mixed")
    plain = by_hand()
    for name, value in module.model.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=0.05, atol=0.05)
    differ(module.model.state_dict(), by_hand(0.0))


def test_a_module_without_features_gets_a_sentence():
    class Plain(Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(6, 3)

    with pytest.raises(ConfigError, match="Plain holds 0 SplitModels; say with features="):
        fit(Plain(), CEMCallback(plug_in()))
