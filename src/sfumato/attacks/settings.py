"""The settings that all attacks have, and those of every attack with a network to train."""

from dataclasses import dataclass, fields

from sfumato.compute import Precision
from sfumato.settings import check_settings

__all__ = ["AttackConfig", "LearnedConfig"]

_LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "width", "critic_steps", "draws", "size", "values", "images"), 1),
    **dict.fromkeys(("iterations", "restarts", "samples", "flow_steps", "choose_on"), 1),
    **dict.fromkeys(("blocks", "mse_weight", "gradient_penalty", "tv", "prior", "average", "weight_decay"), 0),
}
_ABOVE = dict.fromkeys(("lr", "generator_lr", "critic_lr", "hold_out"), 0)
_BELOW = {"hold_out": 1, "average": 1}


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Settings that every attack has; a leaf adds its own. All are checked: of the annotated type, finite, in range.

    Attributes:
        hold_out: Fraction of the attacker's images that only judge. They choose and show convergence.
        seed: Random seed of initial weights, order, noise and of what is held out.

    Raises:
        ConfigError: a setting is of another type or out of its range.
    """

    hold_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        names = {field.name for field in fields(self)}
        least, above, below = (
            {name: table[name] for name in table.keys() & names} for table in (_LEAST, _ABOVE, _BELOW)
        )
        check_settings(self, least=least, above=above, below=below)


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(AttackConfig):
    """Settings that every attack with a network has.

    Attributes:
        epochs: Passes over the attacker's images.
        batch_size: Images per step.
        width: Channels of every layer.
        blocks: Residual blocks before upsampling.
        precision: Floating-point format of the networks. `auto` and `fp32` compute in float32 on every machine; `bf16`
            does not.
    """

    epochs: int = 50
    batch_size: int = 256
    width: int = 64
    blocks: int = 8
    precision: Precision = "auto"


@dataclass(frozen=True, kw_only=True)
class AdamConfig(LearnedConfig):
    """Settings of attacks with one network and one Adam.

    Attributes:
        lr: Learning rate of Adam. Annealed to 0 along a cosine.
        weight_decay: Weight decay of Adam.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
