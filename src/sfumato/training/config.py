"""Everything that defines a training, in one value that is stored with the run."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from sfumato import defenses
from sfumato.compute import Engine, Precision
from sfumato.errors import CheckpointError, ConfigError, first_line
from sfumato.files import read_json
from sfumato.models import default_cut
from sfumato.settings import check_settings

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
# Settings of storage and of the machine: a run may be resumed with others.
# `skip_unreadable`: the fingerprint of the images says which of them were left out.
MACHINE = frozenset({"checkpoint_seconds", "data_dir", "device", "engine", "micro_batch", "skip_unreadable", "watch"})
_LEAST = {
    **dict.fromkeys(("size", "limit", "test_limit", "width", "epochs", "batch_size", "micro_batch"), 1),
    **dict.fromkeys(("clusters_per_class", "refresh_every", "quantize_bits"), 1),
    **dict.fromkeys(("bottleneck", "momentum", "weight_decay", "rotation", "noise_std", "lam", "hold_out"), 0),
    "checkpoint_seconds": 0,
}
_BELOW = {"hold_out": 1, "quantize_bits": 17, "width": 4097, "noise_std": 1e6, "lam": 1e9}
_NETWORKS = {"digits": "digits", "fashion-mnist": "vgg5", "mnist": "vgg5", "tinyimagenet": "resnet20"}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        data: Name of a data set, such as digits, cifar10, folder or hub.
        data_dir: Where the data set lies. `digits` needs none, nor does `fashion-mnist` where Debian's package is.
        size: Side to which images are resized. For data sets without a size of their own; if not given, they stay as
            they are.
        limit: Use only that many training images, balanced over the classes.
        test_limit: Use only that many test images.
        skip_unreadable: Leave out image files that cannot be read. Without it they are named and the data set refused.
        model: Name of a network, or auto. That is the small network for digits, VGG5 for Fashion-MNIST and MNIST,
            ResNet-20 for TinyImageNet, and VGG11 otherwise.
        cut: Where the network is cut. A convolution's number (VGG5, VGG11: 1 to 3) or a block's name (ResNet-20).
        bottleneck: Channels of the released feature. 0 releases the raw feature without a bottleneck.
        width: Channels of the first convolution of the network for digits.
        epochs: Passes over the training set.
        batch_size: Images per step.
        lr: Peak learning rate.
        lr_schedule: How the learning rate moves. `one_cycle` is for short trainings; `paper` multiplies by 0.2 at 1/4,
            1/2, 3/4 and 7/8 of the training.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        augment: Crop and flip the training images at random. For `digits` and `mnist` shifts only, for `fashion-mnist`
            flips only.
        rotation: Also turn the images by up to so many degrees.
        noise_std: Standard deviation of the noise on the wire. The same as `noise(std)` in the defence.
        noise_shape: Shape of the noise, `noise(shape=...)`. `white`, or measured on the cloud after a third of the
            training: `fisher` (inverse Fisher information), `diagonal`, `least` (least information) or `low` (for more
            than 1,024 values).
        bound: What bounds the feature. `none` leaves it to `clip`, without which noise protects nothing.
        clip_norm: L2 radius to which the feature is clipped. The same as `clip(radius)` in the defence.
        quantize_bits: Bits per value on the wire. The same as `levels(bits)` in the defence; floats
            are sent if not given.
        defense: The defence in one line, such as 'ressfl + cem(0.1) + noise(0.15) + clip(1)'. What it does not name has
            its usual setting: noise of 0.1, no CEM, no clip. Stored are the settings that it stands for, and here the
            name of the registered defence alone.
        defense_options: Settings of the registered defence. The command line takes them in brackets behind its name.
        cem: Train with conditional entropy maximization. The same as `cem` in the defence.
        lam: Weight lambda of the CEM loss. The same as `cem(lam)`; 0.3 where none is given.
        lam_schedule: How lambda moves, `cem(schedule=...)`. It is multiplied by the competence of the classifier, so
            that a training at chance has no penalty; not as printed.
        covariance: Form of the mixture's covariances, `cem(covariance=...)`. `tied` if `update` is `steps`, else
            `full`.
        clusters_per_class: Mixture components per class, `cem(clusters=...)`. 1 if `update` is `steps`, else 3 as in
            the paper.
        scaling: Units of the CEM loss, `cem(scaling=...)`.
        update: When the mixture follows, `cem(update=...)`. `steps` (the moments follow the features of the steps),
            `epoch` (a pass over the training set before each epoch) or `running` (that, and Eq. 5 and 6); `steps` if
            the scaling is `per_dimension`, else `epoch`.
        fit: How the mixture is fitted, `cem(fit=...)`. `kmeans` inside each class, or `em` over all classes and with
            noise, as Algorithm 1 prints it.
        refresh_every: Epochs between two fits of the mixture, `cem(refresh=...)`. Without effect if `update` is
            `steps`.
        hold_out: Fraction of the training set that is not learned from. Every choice is made on that validation set.
        precision: Floating-point format of the networks.
        device: Where to compute: auto, cpu or cuda.
        engine: How a step is computed. `auto` replays the step as a CUDA graph where there is a GPU; `eager` never
            does; `compiled` also compiles both halves of the network (a C++ compiler or Triton is needed);
            `deterministic` is eager with reproducible kernels. The result is the same up to rounding.
        micro_batch: Compute a step in parts of so many images. For batches that do not fit the memory; batch
            normalisation and penalties that compare the images of a batch then see the parts.
        seed: Random seed; the same seed on the same machine and version gives the same result.
        checkpoint_seconds: Seconds of work that a crash may cost at most.
        watch: Measure information and a linear attacker's error after every epoch. On a few hundred images.
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
    noise_shape: Literal["white", "diagonal", "fisher", "least", "low"] = "white"
    bound: Literal["sigmoid", "none"] = "sigmoid"
    clip_norm: float | None = None
    quantize_bits: int | None = None
    defense: str = "none"
    defense_options: dict[str, int | float | str | bool | None] = field(default_factory=dict)
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
        if isinstance(self.defense, defenses.DefenseLine) or not _is_name(self.defense):
            usual: dict[str, Any] = {
                field.name: {} if field.name == "defense_options" else field.default for field in fields(self)
            }
            given = {name: value for name, value in vars(self).items() if value != usual[name]}
            for name, value in defenses.expand(given).items():
                object.__setattr__(self, name, value)
        check_settings(self, least=_LEAST, above={"lr": 0, "clip_norm": 0}, below=_BELOW)
        if isinstance(self.cut, int) and self.cut < 1:
            raise ConfigError(f"cut is {self.cut}; give a convolution's number from 1, or a block's name")
        if self.defense == "none" and self.defense_options:
            raise ConfigError("defense_options are given without a defence; name one with --defense")
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
        return cls(**cls.printed(given))

    @staticmethod
    def printed(given: dict[str, Any]) -> dict[str, Any]:
        """The given settings with those of `as_printed` that are missing; errors as there."""
        given = defenses.expand(given)
        for name, value in _PRINTED.items():
            if name in given and given[name] != value:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"Algorithm 1 as printed has {name} {value}, not {given[name]}; leave out {option}, or give the "
                    "settings one by one without --as-printed"
                )
        return _PRINTED_DEFAULTS | given | _PRINTED

    @classmethod
    def of_run(cls, folder: Path, given: dict[str, Any]) -> Self:
        """The settings that a run folder was made with, or the given ones where there is no run yet.

        Args:
            folder: of the run.
            given: settings that are asked for. Those of storage and of the machine take the place of the stored ones.

        Raises:
            CheckpointError: another one has another value than the stored one, or the folder cannot be read.
        """
        path = folder / "config.json"
        if not path.exists():
            return cls(**given)
        stored = cls.stored(read_json(path), path)
        wanted = replace(stored, **given)
        ours, theirs = wanted.identity(), stored.identity()
        if changed := [name for name in given if ours.get(name) != theirs.get(name)]:
            lines = f"the defence {stored.line}, not {wanted.line}"
            plain = f"{changed[0]} {getattr(stored, changed[0])}, not {getattr(wanted, changed[0])}"
            raise CheckpointError(
                f"{folder} holds a run with {lines if stored.line != wanted.line else plain}; leave that out to resume "
                "the run, or choose another --run folder"
            )
        return replace(stored, **{name: value for name, value in given.items() if name in MACHINE})

    @classmethod
    def stored(cls, described: dict[str, Any], path: Path) -> Self:
        """The settings in what a file of a run says.

        Raises:
            CheckpointError: it has none, they are of another version, or one has no meaning.
        """
        try:
            return cls.from_dict(described["config"])
        except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            what = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
            raise CheckpointError(f"{path} is damaged ({what}); choose another --run folder") from error

    @property
    def line(self) -> defenses.DefenseLine:
        """The whole defence as one line, which `defense` and `--defense` take.

        >>> print(TrainConfig(defense="cem(0.1) + ressfl").line)
        ressfl(0.3) + cem(0.1) + noise(0.1)
        """
        return defenses.DefenseLine.of(self)

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
        kept = {name: value for name, value in self.as_dict().items() if name not in MACHINE}
        if self.bound == "sigmoid":  # this and others came later: results stored before keep their names
            del kept["bound"]
        if self.noise_shape == "white":
            del kept["noise_shape"]
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


def _is_name(defense: object) -> bool:
    """Whether that is no line but the bare name of a registered defence, perhaps of a plugin that is not loaded."""
    return not isinstance(defense, str) or (defense.isidentifier() and not defenses.in_notation_only(defense))
