"""`package.module:name` from the command line: what it names in the user's own code, called where it can be called."""

import importlib
import os
import sys
from typing import Any

from sfumato.errors import ConfigError

__all__ = ["call_named", "import_named"]


def import_named(target: str) -> Any:
    """What `package.module:name` names; the current folder is searched too, as `python -m` does.

    Raises:
        ConfigError: the words have another form, or the module cannot be imported.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"TARGET is {target!r}; give package.module:function, such as mypackage.models:build")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's own code, which runs when it is imported
        raise ConfigError(f"{target} cannot be imported ({error}); give package.module:function") from error


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
