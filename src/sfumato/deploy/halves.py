"""The two halves of a split model as they are exported: image to wire, and wire to logits."""

import copy

from torch import Tensor, nn

from sfumato.deploy.manifest import QuantizationSpec
from sfumato.errors import ConfigError
from sfumato.split import SplitModel, feature_range

__all__ = ["DecoderHalf", "EncoderHalf", "check_exportable", "ends_in_sigmoid"]


class EncoderHalf(nn.Module):
    """`(image, noise, *uniforms) -> feature`: encoder, transforms, clip, masks, noise; everything before the levels."""

    takes_star = True

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.edge = copy.deepcopy(model.edge).float()
        self.channel = copy.deepcopy(model.channel)

    def forward(self, *inputs: Tensor) -> Tensor:
        image, noise, *uniforms = inputs
        return self.channel.perturb(self.channel.bound(self.edge(image)), noise, uniforms)


class DecoderHalf(nn.Module):
    """`feature -> logits`: level numbers to values, then the decoder; floats go straight to the decoder."""

    def __init__(self, model: SplitModel, levels: QuantizationSpec | None) -> None:
        super().__init__()
        self.cloud = copy.deepcopy(model.cloud).float()
        self.levels = levels

    def forward(self, feature: Tensor) -> Tensor:
        z = feature
        if self.levels is not None:
            width = (self.levels.high - self.levels.low) / (2**self.levels.bits - 1)
            z = feature.float() * width + self.levels.low
        logits: Tensor = self.cloud(z)
        return logits


def check_exportable(model: SplitModel, example: Tensor, *, allow_no_noise: bool, allow_unbounded: bool) -> None:
    """Refuse a model whose deployment would not protect, or whose randomness cannot become an input.

    Raises:
        ConfigError: a random transform has no form with explicit numbers, there is no noise, or nothing bounds the
            feature, and the caller has not allowed that.
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
    if not allow_unbounded and not _bounded(model, example):
        raise ConfigError(
            "nothing bounds the feature, so the encoder can outgrow any noise; train with a bottleneck (it ends in a "
            "sigmoid), with --clip-norm or with --quantize-bits, or allow it by name (--unbounded)"
        )


def ends_in_sigmoid(edge: nn.Module, example: Tensor) -> bool:
    """Whether a sigmoid, or what is like one, makes the encoder's output, so that its features lie in [0, 1]."""
    return feature_range(edge, example) == (0, 1)


def _bounded(model: SplitModel, example: Tensor) -> bool:
    if model.channel.clip_norm is not None or model.channel.quantize_bits is not None:
        return True
    return feature_range(model.edge, example) is not None
