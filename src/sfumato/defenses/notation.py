"""A defence in one line: `ressfl + cem(0.1) + noise(0.15) + clip(1)`, read here and printed everywhere."""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Self, get_args

from sfumato.defenses import registry
from sfumato.defenses.base import Defense
from sfumato.defenses.cem import build_cem
from sfumato.defenses.shaped_noise import NoiseShape, ShapedNoise
from sfumato.errors import ConfigError, nearest
from sfumato.settings import check_type
from sfumato.split import Channel

Value = int | float | str | bool | None
_LONGEST = 1000  # characters of a line


def _noise(std: float, shape: NoiseShape = "white") -> Channel:
    return Channel(noise_std=std)


def _clip(radius: float) -> Channel:
    return Channel(clip_norm=radius)


def _levels(bits: int) -> Channel:
    return Channel(quantize_bits=bits)


# What is no registered defence: the parts of the channel, and CEM. Beside each, the name of a setting -> that of
# `TrainConfig`; a parameter of the function that has no such name comes from elsewhere.
_OWN: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "cem": (
        build_cem,
        {
            "lam": "lam",
            "schedule": "lam_schedule",
            "covariance": "covariance",
            "clusters": "clusters_per_class",
            "scaling": "scaling",
            "update": "update",
            "fit": "fit",
            "refresh": "refresh_every",
        },
    ),
    "noise": (_noise, {"std": "noise_std", "shape": "noise_shape"}),
    "clip": (_clip, {"radius": "clip_norm"}),
    "levels": (_levels, {"bits": "quantize_bits"}),
}

SETTINGS = frozenset({"defense", "defense_options", "cem"}.union(*(names.values() for _, names in _OWN.values())))
"""The settings of a training that a line stands for."""


@dataclass(frozen=True)
class Mechanism:
    """One part of a defence: its name and its settings, those at their defaults left out but for the first.

    Attributes:
        name: of a registered defence, or `cem`, `noise`, `clip`, `levels`.
        settings: (name, value) in the order of the mechanism's signature.
    """

    name: str
    settings: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, name: str, values: Mapping[str, Value]) -> Self:
        """A mechanism with these settings, checked.

        Raises:
            ConfigError: the mechanism or a setting is unknown, missing, of another type or out of its range.
        """
        known = _parameters(name)
        kept = {}
        for setting in values:
            if setting not in known:
                raise ConfigError(f"{name} has no setting {setting!r}{nearest(setting, known)}; write {_usage(name)}")
        for index, (setting, parameter) in enumerate(known.items()):
            value = values.get(setting, parameter.default)
            if value is parameter.empty:
                raise ConfigError(f"{name} needs its {setting}; write {_usage(name)}")
            kind = parameter.annotation
            if kind is not parameter.empty:
                check_type(f"{setting} of {name}", value, kind)
                if kind is float or float in get_args(kind):
                    value = float(value) if isinstance(value, int) else value
            if (index == 0 and value is not None) or value != parameter.default:
                kept[setting] = value
        made = cls(name, tuple(kept.items()))
        if name not in _OWN:
            registry.build(name, **kept)  # whose constructor knows the ranges
        elif name != "cem":
            _OWN[name][0](**kept)
        elif kept["lam"] < 0:
            raise ConfigError(f"lam of cem is {kept['lam']}, which would reward leaking; give 0 or more")
        return made

    def __str__(self) -> str:
        first = next(iter(_parameters(self.name)), None)
        shown = [_shown(v) if key == first else f"{key}={_shown(v)}" for key, v in self.settings]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


@dataclass(frozen=True)
class DefenseLine:
    """A whole defence as a value; `str` gives the line, and `defense` of that line the same value.

    Attributes:
        mechanisms: in order: registered defences, `cem`, `noise`, `clip`, `levels`.
    """

    mechanisms: tuple[Mechanism, ...] = ()

    def __str__(self) -> str:
        return " + ".join(map(str, self.mechanisms)) or "none"

    @property
    def compact(self) -> str:
        """The line without blanks, for names of files; it reads back, too."""
        return str(self).replace(" ", "")

    def settings(self) -> dict[str, Any]:
        """The same as settings of `sfumato.training.TrainConfig`: what the line does not name is not among them.

        Raises:
            ConfigError: it names two defences beside CEM and the channel, and a training takes one.
        """
        found: dict[str, Any] = {"defense": "none", "defense_options": {}}
        for part in self.mechanisms:
            if part.name in _OWN:
                names = _OWN[part.name][1]
                found |= {names[key]: value for key, value in part.settings}
                found |= {"cem": True} if part.name == "cem" else {}
            elif found["defense"] != "none":
                raise ConfigError(
                    f"a training takes one defence beside cem, noise, clip and levels; give {found['defense']} or "
                    f"{part.name}"
                )
            else:
                usual = {key: one.default for key, one in _parameters(part.name).items()}
                options = {key: value for key, value in part.settings if value != usual[key]}
                found |= {"defense": part.name, "defense_options": options}
        return found

    @classmethod
    def of(cls, config: Any) -> Self:
        """The line of a `TrainConfig`; noise is always named, for a line without it means the usual noise."""
        parts = []
        if config.defense != "none":
            parts.append(Mechanism.of(config.defense, config.defense_options))
        for name, (_, names) in _OWN.items():
            values = {key: getattr(config, field) for key, field in names.items()}
            if config.cem if name == "cem" else next(iter(values.values())) is not None:
                parts.append(Mechanism.of(name, values))
        return cls(tuple(parts))

    def channel(self, **options: Any) -> Channel:
        """What happens to the feature on its way out; without `noise` there is none.

        Noise with a shape begins white: the defence that `build` makes of it measures the shape on the trained cloud.

        Args:
            options: further ones of `sfumato.Channel`.
        """
        wanted = ("noise_std", "clip_norm", "quantize_bits")
        return Channel(**{name: value for name, value in self.settings().items() if name in wanted}, **options)

    def build(self, num_classes: int, *, seed: int = 0) -> list[Defense]:
        """The defences with their penalties and networks, for a loop; the channel is `channel`'s.

        Raises:
            ConfigError: CEM without noise, for which information is infinite.
        """
        found: list[Defense] = []
        noise_std, shape = (self.settings().get(name) for name in ("noise_std", "noise_shape"))
        if noise_std and shape not in (None, "white"):  # before CEM, which follows it
            found.append(ShapedNoise(noise_std, shape, seed))
        for part in self.mechanisms:
            if part.name == "cem":
                values: dict[str, Any] = dict(part.settings)
                found.append(build_cem(**values, num_classes=num_classes, noise_std=noise_std or 0.0, seed=seed))
            elif part.name not in _OWN:
                found.append(registry.build(part.name, **dict(part.settings)))
        return found


def defense(line: str | DefenseLine) -> DefenseLine:
    """Read a defence from one line.

        line      = "none" | mechanism { "+" mechanism }
        mechanism = name [ "(" [ value ] { "," setting "=" value } ")" ]

    A value without a name is the first setting, the mechanism's main weight. Mechanisms are `noise(std)`,
    `clip(radius)` and `levels(bits)` of the channel, `cem(lam)`, and every registered defence, your own
    included. The order does not matter; printed, a line has one form, which reads back to the same value.

    Raises:
        ConfigError: the line cannot be read, or a mechanism, a setting or a value is not known; the sentence names
            those that are.

    >>> print(defense("noise(.15) + clip(1) + ressfl"))
    ressfl(0.3) + noise(0.15) + clip(1)
    >>> defense("cem(0.1, clusters=3) + noise(0.15)").settings()["clusters_per_class"]
    3
    """
    if isinstance(line, DefenseLine):
        return line
    try:
        if len(line) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST} characters")
        terms = _terms(ast.parse(" ".join(line.strip().splitlines()), mode="eval").body)
        parts = [Mechanism.of(name, values) for name, values in map(_read, terms) if name != "none"]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(
            f"the defence {line!r} cannot be read ({reason}); write mechanisms joined by +, such as "
            "'ressfl + cem(0.1) + noise(0.15)'"
        ) from None
    named = [part.name for part in parts]
    if twice := [name for name in named if named.count(name) > 1]:
        raise ConfigError(f"the defence {line!r} names {twice[0]} twice; name it once")
    order = {name: index for index, name in enumerate(_OWN)}
    return DefenseLine(tuple(sorted(parts, key=lambda part: (order.get(part.name, -1), part.name))))


def expand(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training whose `defense` may be a line: the settings that the line stands for take its place.

    Raises:
        ConfigError: the line says something else than a setting that was given beside it.

    >>> expand({"defense": "cem(0.1) + noise(0.2)", "epochs": 3})["noise_std"]
    0.2
    """
    if "defense" not in settings:
        return dict(settings)
    line = defense(settings["defense"])
    meant = line.settings()
    for name, value in meant.items():
        if name != "defense" and name in settings and settings[name] != value:
            raise ConfigError(f"{name} is {settings[name]}, but the defence '{line}' means {value}; give one of them")
    return {**settings, **meant}


def in_notation_only(name: str) -> bool:
    """Whether a mechanism is CEM or a part of the channel, and no registered defence.

    >>> in_notation_only("cem"), in_notation_only("ressfl")
    (True, False)
    """
    return name in _OWN


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), *_terms(node.right)]
    return [node]


def _read(node: ast.expr) -> tuple[str, dict[str, Value]]:
    called = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(called.func, ast.Name):
        raise ValueError(f"{ast.unparse(node)!r} is no mechanism")
    name = called.func.id
    if name == "none" and not called.args and not called.keywords:
        return name, {}
    known = list(_parameters(name))
    if len(called.args) > len(known):
        raise ConfigError(f"{name} takes {len(known)} values, not {len(called.args)}; write {_usage(name)}")
    values = dict(zip(known, map(_value, called.args), strict=False))
    for keyword in called.keywords:
        if keyword.arg is None or keyword.arg in values:
            raise ValueError(f"a setting of {name} is given twice")
        values[keyword.arg] = _value(keyword.value)
    return name, values


def _value(node: ast.expr) -> Value:
    if isinstance(node, ast.Name):
        return {"none": None, "true": True, "false": False}.get(node.id, node.id)
    value = ast.literal_eval(node)
    if not isinstance(value, int | float | str | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{ast.unparse(node)} is no number and no word")
    return value


def _shown(value: Value) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        plain = value.isidentifier() and value not in ("none", "true", "false") and not iskeyword(value)
        return value if plain else repr(value)
    return repr(value + 0).removesuffix(".0")  # -0.0 is 0


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The settings of a mechanism."""
    if name in _OWN:
        builder, settings = _OWN[name]
        return {key: one for key, one in inspect.signature(builder).parameters.items() if key in settings}
    if name not in registry.names():
        known = [*registry.names(), *_OWN]
        raise ConfigError(
            f"unknown mechanism {name!r}{nearest(name, known)}; known are {', '.join(map(_usage, known))} "
            "(one of your own becomes known with --plugin FILE.py)"
        )
    given = inspect.signature(registry.lookup(name)).parameters
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # of a class without an __init__
    return {key: one for key, one in given.items() if one.kind not in anything}


def _usage(name: str) -> str:
    return f"{name}({', '.join(_parameters(name))})"
