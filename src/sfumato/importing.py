"""`package.module:name` from the command line: what it names in the user's own code, called where it can be called."""

import importlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError

__all__ = ["call_named", "import_named", "is_own_code"]


def import_named(target: str) -> Any:
    """What `package.module:name` names; the current folder is searched too, as `python -m` does.

    Raises:
        ConfigError: the words have another form, or the module cannot be imported.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"TARGET is {target!r}; give package.module:function, such as mypackage.models:build")
    _search_here()
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's own code, which runs when it is imported
        raise ConfigError(f"{target} cannot be imported ({error}); give package.module:function") from error


def is_own_code(target: str) -> bool:
    """Whether the module of `package.module:name` is installed, part of this package, or in a file of this user's.

    Nothing of the module itself runs for that; a module that is not found is nobody's, and importing it will say so.
    """
    _search_here()
    try:
        spec = importlib.util.find_spec(target.partition(":")[0])
    except (ImportError, ValueError):
        return True
    if spec is None or spec.origin is None:
        return True
    path = Path(spec.origin).resolve()
    trusted = [Path(__file__).resolve().parent, *(Path(place).resolve() for place in sysconfig.get_paths().values())]
    if any(path.is_relative_to(place) for place in trusted):
        return True
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


def _search_here() -> None:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def call_named(target: str) -> Any:
    """What the function returns that `package.module:function` names.

    Raises:
        ConfigError: it cannot be imported, is no function, or raises.
    """
    found = import_named(target)
    if not callable(found):
        raise ConfigError(f"{target} is a {type(found).__name__}; name a function that returns a model")
    try:
        return found()
    except Exception as error:  # the user's own code
        raise ConfigError(f"{target} raised {type(error).__name__}: {error}") from error
