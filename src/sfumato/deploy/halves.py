"""The two halves of a split model as they are exported: image to clean feature, and wire to logits."""

import copy

from torch import Tensor, nn

from sfumato.deploy.manifest import QuantizationSpec
from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel

__all__ = ["DecoderHalf", "EncoderHalf", "check_exportable"]


class EncoderHalf(nn.Module):
    """`(image, *uniforms) -> feature`: encoder, transforms and masks. Clip, noise and levels are the device's doing.

    Where masks follow, the clip before each of them is part of the network, as `Channel.release` has it.
    """

    takes_star = True

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        channel = copy.deepcopy(model.channel)
        self.edge = copy.deepcopy(model.edge).float()
        self.masks = nn.ModuleList(channel.stochastic_transforms)
        self.bound = Channel(clip_norm=channel.clip_norm if len(self.masks) else None, transforms=channel.transforms)
        self.clip = Channel(clip_norm=channel.clip_norm)

    def forward(self, *inputs: Tensor) -> Tensor:
        image, *uniforms = inputs
        feature = self.bound.bound(self.edge(image))
        for index, (mask, uniform) in enumerate(zip(self.masks, uniforms, strict=True)):
            feature = mask.with_uniform(self.clip.bound(feature) if index else feature, uniform)  # type: ignore[operator]
        return feature


class DecoderHalf(nn.Module):
    """`feature -> logits`: level numbers to values, then the decoder; floats go straight to the decoder."""

    def __init__(self, model: SplitModel, levels: QuantizationSpec | None) -> None:
        super().__init__()
        self.cloud = copy.deepcopy(model.cloud).float()
        self.levels = levels

    def forward(self, feature: Tensor) -> Tensor:
        z = feature
        if self.levels is not None:
            z = feature.float() * self.levels.width + self.levels.low
        logits: Tensor = self.cloud(z)
        return logits


def check_exportable(model: SplitModel, *, allow_no_noise: bool) -> None:
    """Refuse a model whose deployment would not protect, or whose randomness cannot become an input.

    Raises:
        ConfigError: a random transform has no form with explicit numbers, or there is no noise and the caller has not
            allowed that.
    """
    for transform in model.channel.stochastic_transforms:
        if not hasattr(transform, "with_uniform"):
            raise ConfigError(
                f"{type(transform).__name__} draws random numbers inside the network, which a device cannot do safely; "
                "give it a method with_uniform(feature, uniform) that takes them as an argument"
            )
    if model.channel.noise_std == 0 and not allow_no_noise:
        raise ConfigError(
            "the model adds no noise to what leaves the device, so nothing protects it; train with --noise-std above "
            "0, or allow it by name (--without-noise)"
        )
