"""ResSFL: the encoder is trained against an inner adversary that reconstructs the image."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from sfumato.compute import arranged, autocast, use_bf16
from sfumato.defenses.base import Batch, Defense, Site
from sfumato.defenses.registry import register
from sfumato.distributed import whole
from sfumato.errors import ConfigError, NotFittedError
from sfumato.metrics import ssim
from sfumato.models import ReconstructionNet


@register
class ResSFL(Defense):
    """Adds `alpha * max(0, SSIM(x, a(z)) - threshold)` to the loss, against an adversary a that maximises the SSIM.

    The adversary is the decoding attack's network with four instead of eight residual blocks. It sees what leaves the
    device, and takes one step of Adam per batch. Source: Li et al., ResSFL, CVPR 2022 (the paper's [29]); with more
    noise on the wire it is the paper's Noise_ARL [19].

    One forward and one backward pass serve both players: their losses are functions of the same SSIM, so the gradient
    that flows back through the adversary is turned round where it enters the feature (Ganin and Lempitsky 2015). The
    adversary therefore moves on the feature from before the encoder's step, where the authors' code runs it a second
    time. Settings as in their code: alpha 0.3, threshold 0.5; the adversary's rate is that of their attack.

    Args:
        alpha: weight of the penalty.
        threshold: SSIM below which the encoder is left in peace; the adversary keeps learning.
        lr: of the adversary's Adam.
        width: channels of the adversary.
        blocks: residual blocks of the adversary.

    Raises:
        ConfigError: alpha is negative or the threshold is not an SSIM.
    """

    name: ClassVar[str] = "ressfl"
    replayable = True
    trains_adversary: ClassVar[bool] = True

    def __init__(
        self, alpha: float = 0.3, threshold: float = 0.5, lr: float = 1e-3, width: int = 64, blocks: int = 4
    ) -> None:
        super().__init__()
        if alpha < 0:
            raise ConfigError(f"alpha is {alpha}, which would reward leaking; give 0 or more")
        if not -1 <= threshold <= 1:
            raise ConfigError(f"threshold is {threshold}; give an SSIM between -1 and 1, such as 0.5")
        self.alpha, self.threshold, self.lr, self.width, self.blocks = alpha, threshold, lr, width, blocks
        self.adversary: nn.Module | None = None
        self._optimizer: Adam | None = None
        self._feature_shape: tuple[int, ...] = ()
        self._bf16 = False
        self.last: Tensor
        self.register_buffer("last", torch.zeros(()))

    def attach(self, site: Site) -> None:
        """Build the adversary, with weights from torch's global generator."""
        self._feature_shape = site.feature_shape
        net = ReconstructionNet(site.feature_shape, site.image_shape, width=self.width, blocks=self.blocks)
        self.adversary = arranged(net, self.last.device, site.feature_shape)
        self._optimizer = None

    def optimizers(self) -> Sequence[Optimizer]:
        """The adversary's Adam; made when first asked for, when the adversary lies on its final device."""
        if self.adversary is None:
            raise NotFittedError("the adversary has no shape yet; call attach(site) before training")
        if self._optimizer is None:
            # On a GPU the number of steps is counted there, so that the step can be replayed.
            on_gpu = self.last.device.type == "cuda"
            self._optimizer = Adam(self.adversary.parameters(), lr=self.lr, fused=True, capturable=on_gpu)
            self._bf16 = use_bf16("auto", self.last.device, self.adversary, self._feature_shape)
        return (self._optimizer,)

    def penalty(self, batch: Batch) -> Tensor | None:
        """The encoder's penalty; its backward pass leaves the adversary's own gradients in the adversary."""
        self.optimizers()
        assert self.adversary is not None
        z = batch.released.view_as(batch.released)
        with autocast(z.device, self._bf16):
            reconstructed = self.adversary(z)
        similarity = whole(ssim(batch.images, reconstructed.float())).mean()
        self.last.copy_(similarity.detach())
        excess = (similarity.detach() - self.threshold).clamp_min(0.0)
        # To the adversary the loss is -SSIM; to the encoder, whose gradient passes through z, it is alpha SSIM where
        # that is too high. The value is the encoder's alone.
        strength = self.alpha * (excess > 0)
        if z.requires_grad:
            z.register_hook(lambda gradient: -strength * gradient)
        return self.alpha * excess + (similarity.detach() - similarity)

    def on_step(self, batch: Batch) -> None:
        """The adversary's step."""
        (optimizer,) = self.optimizers()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def report(self) -> dict[str, float]:
        """The adversary's SSIM on the last batch."""
        return {"ssim": float(self.last)}
