"""Everything that defines a training, in one value that is stored with the run."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from sfumato import defenses
from sfumato.compute import Engine, Precision
from sfumato.errors import CheckpointError, ConfigError
from sfumato.models import default_cut

__all__ = ["CEM_VERSION", "TrainConfig"]

# Counts up when CEM itself changes, so that results of another version keep their name and are not taken for new ones.
# Version 1 fitted its mixture to features in evaluation mode.
CEM_VERSION = 2
# What decides nothing without CEM keeps the values under which the first results are stored.
_FIRST_CEM = {
    "lam": 0.3,
    "lam_schedule": "ramp",
    "covariance": "full",
    "clusters_per_class": 3,
    "scaling": "per_dimension",
    "update": "epoch",
    "refresh_every": 1,
}
# Algorithm 1 as the paper prints it: what it fixes, and what it leaves open but the paper's experiments say.
_PRINTED: dict[str, Any] = {
    "cem": True,
    "fit": "em",
    "update": "running",
    "refresh_every": 1,
    "covariance": "full",
    "scaling": "literal",
    "lam_schedule": "constant",
    "hold_out": 0.0,
}
_PRINTED_DEFAULTS: dict[str, Any] = {"lam": 16.0, "clusters_per_class": 3}
_NETWORKS = {"digits": "digits", "fashion-mnist": "vgg5", "mnist": "vgg5", "tinyimagenet": "resnet20"}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        data: name of a data set (`digits`, `fashion-mnist`, `cifar10`, `folder`, ...).
        data_dir: where it lies; `digits` needs none, nor does `fashion-mnist` where Debian's package installed it.
        size: side to which images are resized, for data sets without a size of their own; none takes them as they are.
        limit: use only that many training images, balanced over the classes.
        test_limit: likewise for the test images.
        skip_unreadable: leave out image files that cannot be read instead of refusing the data set.
        model: `auto` (the small network for digits, VGG5 for Fashion-MNIST and MNIST, ResNet-20 for TinyImageNet, VGG11
            otherwise) or a network's name.
        cut: where the network is cut: a convolution's number (VGG5, VGG11: 1 to 3) or a block's name (ResNet-20); none
            takes the network's usual cut.
        bottleneck: channels of the released feature; 0 releases the raw feature without a bottleneck.
        width: channels of the small network's first convolution; its own default where none is given.
        epochs: passes over the training set.
        batch_size: images per step.
        lr: peak learning rate.
        lr_schedule: `one_cycle` (short trainings) or `paper` (x 0.2 at 1/4, 1/2, 3/4 and 7/8 of the training).
        momentum: of SGD.
        weight_decay: of SGD.
        augment: random crop and flip (for `digits` and `mnist` shifts only, for `fashion-mnist` flips only).
        rotation: with `augment`, also turn the images by up to so many degrees.
        noise_std: standard deviation of the noise on the wire.
        bound: `sigmoid`, or `none` for a feature without bounds, which only `clip_norm` then bounds.
        clip_norm: L2 radius to which the feature is clipped, or none.
        quantize_bits: bits per value on the wire, or none for floats.
        defense: besides noise and CEM: `none`, `distcorr`, `dropout`, `patrol`, `ressfl`, `label_smoothing`.
        defense_options: its settings, such as `--defense-options.alpha 0.3`.
        cem: train with conditional entropy maximization.
        lam: lambda, the weight of the CEM loss.
        lam_schedule: `constant`, `ramp` or `lr_coupled`; all are multiplied by the competence of the classifier, so
            that a training at chance has no penalty; not as printed.
        covariance: `full`, `tied`, `diagonal` or `spherical`; `tied` if `update` is `steps`, else `full`, if not given.
        clusters_per_class: mixture components per class; 1 if `update` is `steps`, else 3 as in the paper, if
            not given.
        scaling: `per_dimension`, `literal` or `as_published`.
        update: `steps` (the moments follow the features of the steps), `epoch` (a pass over the training set before
            each epoch) or `running` (that, and Eq. 5 and 6); `steps` if the scaling is `per_dimension`, else `epoch`.
        fit: `kmeans` inside each class, or `em` over all classes and with noise, as Algorithm 1 prints it.
        refresh_every: epochs between two fits of the mixture, if `update` is not `steps`.
        hold_out: fraction of the training set that is not learned from and serves every choice.
        precision: `auto`, `fp32` or `bf16`.
        device: `auto`, `cpu`, `cuda`.
        engine: `auto` replays the step as a CUDA graph where there is a GPU; `eager` never does; `compiled` also
            compiles both halves of the network (a C++ compiler or Triton is needed); `deterministic` is eager with
            reproducible kernels. The result is the same up to rounding.
        micro_batch: compute a step in parts of so many images, where the whole batch does not fit the memory; batch
            normalisation and penalties that compare the images of a batch then see the parts.
        seed: of everything random.
        checkpoint_seconds: how much work a crash may cost at most.
        watch: measure the information and a linear attacker's error after every epoch, on a few hundred images.
    """

    data: str = "digits"
    data_dir: str | None = None
    size: int | None = None
    limit: int | None = None
    test_limit: int | None = None
    skip_unreadable: bool = False
    model: str = "auto"
    cut: int | str | None = None
    bottleneck: int = 8
    width: int | None = None
    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.05
    lr_schedule: Literal["one_cycle", "paper"] = "one_cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True
    rotation: float = 0.0
    noise_std: float = 0.1
    bound: Literal["sigmoid", "none"] = "sigmoid"
    clip_norm: float | None = None
    quantize_bits: int | None = None
    defense: str = "none"
    defense_options: dict[str, int | float | str] = field(default_factory=dict)
    cem: bool = False
    lam: float = defenses.LAMBDA
    lam_schedule: Literal["ramp", "lr_coupled", "constant"] = "constant"
    covariance: Literal["full", "tied", "diagonal", "spherical"] | None = None
    clusters_per_class: int | None = None
    scaling: Literal["per_dimension", "literal", "as_published"] = "per_dimension"
    update: Literal["epoch", "running", "steps"] | None = None
    fit: Literal["kmeans", "em"] = "kmeans"
    refresh_every: int = 1
    hold_out: float = 0.1
    precision: Precision = "auto"
    device: str = "auto"
    engine: Engine = "auto"
    micro_batch: int | None = None
    seed: int = 0
    checkpoint_seconds: float = 30.0
    watch: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "clusters_per_class", "refresh_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError(f"micro_batch is {self.micro_batch}; give the images of a part, at least 1")
        for name in ("limit", "test_limit"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}; give the number of images to use, at least 1")
        if self.bottleneck < 0:
            raise ConfigError(f"bottleneck is {self.bottleneck}; give channels, or 0 for no bottleneck")
        if self.defense == "none" and self.defense_options:
            raise ConfigError("defense_options are given without a defence; name one with --defense")
        if not 0 <= self.hold_out < 1:
            raise ConfigError(f"hold_out is {self.hold_out}; give a fraction of the training set below 1, such as 0.1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr is {self.lr}; give a positive learning rate such as 0.05")
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ConfigError(f"noise_std is {self.noise_std}; give a standard deviation of 0 or more")
        if self.cem and self.noise_std == 0:
            raise ConfigError(
                "noise_std = 0 with CEM: without noise the information in a feature is infinite, nothing can be "
                "minimised; give a positive --noise-std such as 0.025"
            )

    @classmethod
    def as_printed(cls, **given: Any) -> Self:
        """The settings of the paper's Algorithm 1 as printed, with lambda 16 and 3 components per class if not given.

        One mixture for all classes, fitted by EM to noisy features at the start of each epoch; Eq. 5 to 7 as they
        stand, carried over the batches, with full covariances; lambda constant; nothing held out of the training set.

        Raises:
            ConfigError: a given setting contradicts that.

        Example:
            >>> config = TrainConfig.as_printed(epochs=2)
            >>> config.fit, config.update, config.lam, config.hold_out
            ('em', 'running', 16.0, 0.0)
        """
        for name, value in _PRINTED.items():
            if name in given and given[name] != value:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"Algorithm 1 as printed has {name} {value}, not {given[name]}; leave out {option}, or give the "
                    "settings one by one without --as-printed"
                )
        return cls(**(_PRINTED_DEFAULTS | given | _PRINTED))

    @property
    def network(self) -> str:
        """The model's name with `auto` resolved."""
        if self.model != "auto":
            return self.model
        return _NETWORKS.get(self.data, "vgg11")

    @property
    def cut_at(self) -> int | str:
        """The cut with none resolved."""
        return default_cut(self.network) if self.cut is None else self.cut

    @property
    def mixture(self) -> dict[str, Any]:
        """`update`, `covariance` and `clusters_per_class` with none resolved."""
        update = self.update or ("steps" if self.scaling == "per_dimension" else "epoch")
        return {
            "update": update,
            "covariance": self.covariance or ("tied" if update == "steps" else "full"),
            "clusters_per_class": self.clusters_per_class or (1 if update == "steps" else 3),
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def identity(self, cem_version: int = CEM_VERSION) -> dict[str, Any]:
        """What decides the resulting weights: all settings but those of storage and of the machine.

        Args:
            cem_version: 1 gives the name under which a training of the first version's CEM is stored.
        """
        # The fingerprint of the images says which of them were left out.
        ignored = {"checkpoint_seconds", "data_dir", "device", "engine", "micro_batch", "skip_unreadable", "watch"}
        kept = {name: value for name, value in self.as_dict().items() if name not in ignored}
        if self.bound == "sigmoid":  # this and `fit` came later: results stored before keep their names
            del kept["bound"]
        if not self.cem:
            kept |= _FIRST_CEM
        elif cem_version == 1:
            kept |= {name: kept[name] or _FIRST_CEM[name] for name in self.mixture}
        else:
            kept |= self.mixture | {"cem_version": cem_version}
        if self.fit == "kmeans":
            del kept["fit"]
        return kept | {"cut": self.cut_at, "defense_version": defenses.version(self.defense)}

    def digest(self) -> str:
        """Eight hexadecimal digits of the identity, for folder names."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `as_dict` gave.

        Raises:
            CheckpointError: the values hold a setting that this version does not know.
        """
        known = {field.name for field in fields(cls)}
        if foreign := sorted(set(values) - known):
            raise CheckpointError(
                f"the run was made by another version: unknown setting {', '.join(foreign)}; upgrade sfumato"
            )
        return cls(**values)
