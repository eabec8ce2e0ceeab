"""The split model: encoder on the device, channel, decoder in the cloud."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.split.channel import Channel
from sfumato.torch_utils import evaluating

__all__ = ["SplitModel", "SplitOutput"]


class SplitOutput(NamedTuple):
    """One pass through a split model, with its graph.

    Attributes:
        features: (N, ...) z_hat, before the noise; for training losses and bounds, never shown to an attack.
        released: (N, ...) z, what left the device.
        logits: the cloud's answer, (N, classes).
    """

    features: Tensor
    released: Tensor
    logits: Tensor


class SplitModel(nn.Module):
    """`cloud(channel(edge(x)))`, where `encode` is the only way to obtain what leaves the device.

    Classifier, attacks, metrics and export all use `encode` or what is built on it, so a protection that reaches the
    attacker but not the classifier, or the reverse, cannot be written. Every method that releases takes an optional
    generator; equal generator states give bitwise equal releases whichever method is asked.

    An encoder with unbounded output defeats any noise by scaling its output up: end it in a sigmoid or give the
    channel a `clip_norm`.

    Further inputs by name (`shared`), such as an attention mask, are given to both halves as they are.

    Args:
        edge: encoder, images (N, C, H, W) -> feature (N, ...).
        channel: what happens to the feature before it leaves.
        cloud: decoder, released feature -> logits.

    Raises:
        ConfigError: a part is not a module, or the channel is not a `Channel`.

    >>> model = SplitModel(nn.Sigmoid(), Channel(noise_std=0.5), nn.Flatten())
    >>> sent = model.encode(torch.zeros(1, 1, 50, 50), generator=torch.Generator().manual_seed(0))
    >>> print(f"{sent.mean():.1f} ± {sent.std():.1f}")
    0.5 ± 0.5
    """

    def __init__(self, edge: nn.Module, channel: Channel, cloud: nn.Module) -> None:
        super().__init__()
        for name, part in (("edge", edge), ("cloud", cloud)):
            if not isinstance(part, nn.Module):
                raise ConfigError(f"{name} is a {type(part).__name__}; give a torch.nn.Module")
        if not isinstance(channel, Channel):
            raise ConfigError(
                f"channel is a {type(channel).__name__}; give a sfumato.Channel (the order is edge, channel, cloud)"
            )
        self.edge = edge
        self.channel = channel
        self.cloud = cloud

    def features(self, x: Tensor, **shared: Tensor) -> Tensor:
        """z_hat (N, ...): bounded feature before anything random. For training losses and bounds only."""
        z_hat: Tensor = self.channel.bound(self.edge(x, **shared))
        return z_hat

    def encode(self, x: Tensor, generator: torch.Generator | None = None, **shared: Tensor) -> Tensor:
        """z (N, ...): exactly what leaves the device, with fresh noise on every call."""
        return self.channel.release(self.features(x, **shared), generator)

    def outputs(self, x: Tensor, generator: torch.Generator | None = None, **shared: Tensor) -> SplitOutput:
        """Bounded feature, released feature and logits of one pass, with one draw of the noise."""
        z_hat = self.features(x, **shared)
        z = self.channel.release(z_hat, generator)
        # The cloud gets a copy: one that begins with an in-place layer would change what we report as released.
        # In the order in which a feature crosses the wire, whatever order the encoder's convolutions prefer.
        # The channel works in float32 or wider, so a cloud in half precision gets the copy in its own type.
        like = next((value for value in self.cloud.parameters() if value.is_floating_point()), z)
        logits: Tensor = self.cloud(z.to(like.dtype, copy=True, memory_format=torch.contiguous_format), **shared)
        return SplitOutput(z_hat, z, logits)

    def forward(self, x: Tensor, generator: torch.Generator | None = None, **shared: Tensor) -> Tensor:
        """The logits, `cloud(encode(x))`."""
        return self.outputs(x, generator, **shared).logits

    def feature_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the released feature of one image of shape (C, H, W), without the batch dimension."""
        like = next(self.edge.parameters(), torch.empty(0))
        image = torch.zeros((1, *image_shape), device=like.device, dtype=like.dtype)
        with evaluating(self):
            z_hat = self.features(image)
        return tuple(z_hat.shape[1:])
