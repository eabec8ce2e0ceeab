"""Defences by name, and the way in for a method of one's own: one file that registers a class."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sfumato.defenses.base import Defense
from sfumato.errors import ConfigError
from sfumato.settings import check_type

_Class = TypeVar("_Class", bound=type[Defense])

_CLASSES: dict[str, type[Defense]] = {}
_VERSIONS: dict[str, str] = {}
_loading: list[str] = []


def register(cls: _Class) -> _Class:
    """Make a defence known under its `name`; use it as a decorator of the class.

    Raises:
        ConfigError: the class has no name, or another class has it already.
    """
    name = getattr(cls, "name", "")
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{cls.__name__} has the name {name!r}; give it a class attribute such as name = 'my_method'")
    if name == "none" or (name in _CLASSES and _CLASSES[name].__qualname__ != cls.__qualname__):
        raise ConfigError(f"the name {name!r} is taken; give {cls.__name__} another one")
    _CLASSES[name] = cls
    if _loading:
        _VERSIONS[name] = _loading[-1]
    return cls


def names() -> tuple[str, ...]:
    """The defences that `build` knows."""
    return tuple(sorted(_CLASSES))


def options(name: str) -> tuple[str, ...]:
    """The options that a defence takes."""
    return tuple(inspect.signature(lookup(name)).parameters)


def version(name: str) -> str | None:
    """Digest of the file that registered a defence; None for the library's own, whose version is the library's."""
    return _VERSIONS.get(name)


def build(name: str, **values: Any) -> Defense:
    """A defence with its options.

    Raises:
        ConfigError: the name or an option is unknown, or a value is out of its range.
    """
    known = options(name)
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(
            f"defence {name!r} has no option {unknown[0]!r}; it takes {', '.join(known) if known else 'none'}"
        )
    builder: Callable[..., Defense] = lookup(name)
    for option, value in values.items():
        wanted = inspect.signature(builder).parameters[option].annotation
        if wanted in (int, float):
            check_type(f"{option} of defence {name!r}", value, wanted)
    return builder(**values)


def load_plugin(path: Path | str) -> None:
    """Run a Python file that registers defences; a second call with the same content does nothing.

    The file is executed: name only files that you trust. A run folder never names one by itself.

    Raises:
        ConfigError: the file is missing, cannot be run, or registers nothing.
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the plugin {path}: {error.strerror}; give a Python file") from error
    digest = hashlib.sha256(source).hexdigest()[:8]
    if digest in _VERSIONS.values():
        return
    module_name = f"sfumato_plugin_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; give one that registers a defence")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look a class's module up there
    _loading.append(digest)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the plugin {path} cannot be run: {type(error).__name__}: {error}; correct it") from error
    finally:
        _loading.pop()
    if digest not in _VERSIONS.values():
        raise ConfigError(f"{path} registers no defence; decorate its class with @sfumato.defenses.register")


def lookup(name: str) -> type[Defense]:
    """The class that is registered under a name."""
    if name not in _CLASSES:
        raise ConfigError(
            f"unknown defence {name!r}; known are none, {', '.join(names())} "
            "(one of your own becomes known with --plugin FILE.py)"
        )
    return _CLASSES[name]
