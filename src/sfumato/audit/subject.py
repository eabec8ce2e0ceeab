"""What an audit examines, wherever it came from, and the sentence for everything that cannot be audited."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.audit.inputs import Described
from sfumato.data import DataSets
from sfumato.errors import FeatureError, first_line
from sfumato.split import Channel, SplitModel

_TOLERANCE = 1e-4  # of the feature's scale; kernels for other batch sizes round differently
_BATCHES = (1, 2, 3, 32, 64, 256)  # images at a time: a device's one, and what attacks encode

Kind = Literal["run", "saved", "exported", "torchscript", "onnx", "function"]


@dataclass(frozen=True)
class GaussianPrior:
    """A declared distribution of the images, x ~ N(mean, covariance), under which bounds on the error are exact.

    Declare it only for synthetic data that is drawn from it: bounds with a declared prior gate the audit.

    Attributes:
        mean: (d,) flattened row-major.
        covariance: (d, d), positive definite.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class ChannelOptions:
    """How a target that is only an encoder protects its feature, as the user describes it; None is not given.

    Attributes:
        noise_std: standard deviation of the noise on the wire.
        clip_norm: L2 radius to which the feature is clipped.
        quantize_bits: bits per value on the wire.
    """

    noise_std: float | None = None
    clip_norm: float | None = None
    quantize_bits: int | None = None

    def given(self) -> dict[str, Any]:
        """Only what was given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def channel(self) -> Channel:
        """The channel described."""
        return Channel(**self.given())


@dataclass(frozen=True)
class Subject:
    """A split model to audit. A `package.module:function` may return one, to declare data or a prior of its own.

    Attributes:
        name: what readers see.
        model: encoder, channel and decoder.
        kind: where it came from.
        classifies: whether there is a decoder, so that an accuracy can be measured.
        digest: identifies the content, so that an audit resumes only what it began.
        defense: a short name such as `noise_arl+cem`, which decides colour and curve in comparisons.
        setting: a few words that tell subjects of one defence apart.
        sets: data of its own.
        prior: the distribution that its data is drawn from, if that is known exactly.
        exact_mse: the exact minimal error, if it is known in closed form.
        data_options: name, folder and limits of the data it was trained on.
        input_shape: (C, H, W) of the images that it takes, where the target says so.
        classes: names of its outputs, where the target says so.
        tokens: of a model of texts, how many tokens there are.
    """

    name: str
    model: SplitModel
    kind: Kind = "function"
    classifies: bool = True
    digest: str = ""
    defense: str = ""
    setting: str = ""
    sets: DataSets | None = None
    prior: GaussianPrior | None = None
    exact_mse: float | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    tokens: int | None = None

    @property
    def has_cloud(self) -> bool:
        """Whether there is a decoder, whatever it answers."""
        return not isinstance(self.model.cloud, NoDecoder)

    @property
    def described(self) -> Described | None:
        """The encoder, where it says what it takes."""
        return self.model.edge if isinstance(self.model.edge, Described) else None

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next((value.device for value in self.model.parameters()), torch.device("cpu"))


class NoDecoder(nn.Module):
    """Stands where there is no decoder; asking it for a class is a mistake of ours."""

    def forward(self, z: Tensor) -> Tensor:
        raise FeatureError("this target has no decoder, so it recognises nothing")


def encoder_only(edge: nn.Module, options: ChannelOptions) -> SplitModel:
    """A split model of an encoder alone."""
    return SplitModel(edge, options.channel(), NoDecoder())


def digest_of_module(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a module's state and its channel's settings."""
    digest = hashlib.sha256(repr(module).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def check_subject(subject: Subject, x: Tensor) -> None:
    """Check the encoder on images (n, C, H, W) in [0, 1], n at least 3: as many at once as an attack encodes.

    What leaves a device is the feature of one image, and attacks encode many at a time.

    Raises:
        FeatureError: the encoder does not take these images, gives several tensors, NaN, a shape that is not the same
            in every call, another feature for the same image, or one that depends on the other images of a batch, or on
            whether gradients are recorded.
    """
    first = _feature(subject, x)
    again = _feature(subject, x)
    if first.shape != again.shape:
        raise FeatureError(
            f"the encoder gave features {tuple(first.shape)} and then {tuple(again.shape)} for the same images; it has "
            "to give one shape"
        )
    scale = float(first.abs().mean()) + 1e-12
    if float((first - again).abs().max()) > _TOLERANCE * scale:
        raise FeatureError(
            "the encoder is random: the same images gave two different features; take noise and dropout out of it, and "
            "describe the noise on the wire with --noise-std"
        )

    def differs(part: Tensor) -> bool:
        return float((first[: len(part)] - part.detach()).abs().max()) > 10 * _TOLERANCE * scale

    for count in (one for one in _BATCHES if one < len(x)):
        part = _feature(subject, x[:count])
        if part.shape[1:] != first.shape[1:]:
            raise FeatureError(
                f"the encoder gives features of shape {tuple(part.shape[1:])} in a batch of {count} and "
                f"{tuple(first.shape[1:])} in one of {len(x)}; an image's feature has to have one shape"
            )
        if differs(part):
            raise FeatureError(
                "an image's feature depends on the other images of its batch, as with batch normalisation in training "
                "mode; export the encoder in evaluation mode"
            )
    with torch.enable_grad():
        if differs(_feature(subject, x[:2])):
            raise FeatureError(
                "the encoder gives another feature where gradients are recorded, so no attack can say what leaves the "
                "device; let it compute the same in both modes"
            )


def passes_gradients(subject: Subject, x: Tensor) -> bool:
    """Whether the feature can be differentiated with respect to the image."""
    image = x[:1].detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            z_hat = subject.model.features(image)
            slopes = torch.autograd.grad(z_hat.sum(), image, allow_unused=True) if z_hat.requires_grad else (None,)
    except RuntimeError:
        return False
    return slopes[0] is not None


def _feature(subject: Subject, x: Tensor) -> Tensor:
    try:
        made: Any = subject.model.edge(x)
    except Exception as error:  # the user's network, or a graph of it, on images that do not fit
        fed = "check --data and --size"
        if subject.described is not None:
            fed = f"the audit feeds {subject.described.sentence()}; describe the input with --input, or check --size"
        raise FeatureError(
            f"the encoder does not take images of shape {tuple(x.shape[1:])} ({first_line(error)}); {fed}"
        ) from error
    if isinstance(made, tuple | list | dict):
        raise FeatureError(
            f"the encoder gives {len(made)} tensors, and one feature crosses the wire; export an encoder that "
            "concatenates them, or only the one that leaves the device"
        )
    z_hat = subject.model.channel.bound(made)
    if len(z_hat) != len(x):
        raise FeatureError(f"the encoder gave {len(z_hat)} features for {len(x)} images; it has to give one per image")
    if not bool(torch.isfinite(z_hat).all()):
        raise FeatureError("the encoder gives NaN or infinite features; check its weights and how images are scaled")
    return z_hat
