"""What can go wrong because of an input: one class per reason, one sentence with cause and remedy each.

SfumatoError             a ValueError; the command line prints its sentence and exits with 2, or with 3 where it says so
├─ ConfigError           a setting has no meaning, or contradicts another one
├─ DataError             a data set is missing, damaged, or not what it claims to be
├─ DivergedError         the loss became NaN or infinite
├─ FeatureError          a feature or label tensor has the wrong shape, dtype or values
├─ NotFittedError        something was asked for before the call that computes it
├─ CheckpointError       a checkpoint or run folder is of another model, another version, or damaged
├─ BundleError           a bundle is missing, damaged, forged, or too new
├─ RemoteError           a server cannot be reached, or refused a query
├─ StorageError          a file could not be written
├─ Interrupted           a stop was asked for, and what was done is saved
├─ NotJudgedError        a verdict rests on what failed or was not measured (exit code 3)
└─ RankLost              another process of a distributed training ended (exit code 3)
SfumatoWarning           a UserWarning: something works, but not as the user hopes; the text names the remedy
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FeatureError",
    "Interrupted",
    "NotFittedError",
    "NotJudgedError",
    "RankLost",
    "RemoteError",
    "SfumatoError",
    "SfumatoWarning",
    "StorageError",
    "first_line",
    "nearest",
]


class SfumatoError(ValueError):
    """Base of every error a user can cause; the command line prints its sentence and exits with 2 or 3.

    The sentence may quote files and answers of strangers, so control characters never come out of it.

    >>> str(SfumatoError(f"no class {chr(27)}[31mcat"))
    'no class  [31mcat'
    """

    def __str__(self) -> str:
        return "".join(letter if letter.isprintable() else " " for letter in super().__str__())


class ConfigError(SfumatoError):
    """A setting has no meaning, or contradicts another one."""


class DataError(SfumatoError):
    """A data set is missing, damaged, or not what it claims to be."""


class DivergedError(SfumatoError):
    """A training's loss became NaN or infinite; with other settings it may not."""


class FeatureError(SfumatoError):
    """A feature or label tensor has the wrong shape, dtype or values."""


class NotFittedError(SfumatoError):
    """Something was asked for before the call that computes it."""


class CheckpointError(SfumatoError):
    """A checkpoint or run folder belongs to another model, another version, or is damaged."""


class BundleError(SfumatoError):
    """A bundle is missing, damaged, forged, or of a newer version than this one reads."""


class RemoteError(SfumatoError):
    """A server cannot be reached, or refused a query."""


class StorageError(SfumatoError):
    """A file could not be written; what was there before is untouched."""


class Interrupted(SfumatoError):
    """A stop was asked for; what was done until then is saved, and the same call resumes there."""


class NotJudgedError(SfumatoError):
    """A verdict was asked for and cannot be given: what it rests on failed or was not measured; exit code 3."""


class RankLost(SfumatoError):
    """Another process of a distributed training ended, or stopped answering."""


class SfumatoWarning(UserWarning):
    """Something works but does not do what the user hopes for; the text names the remedy."""


def first_line(error: BaseException) -> str:
    r"""What the error of a library says, short enough for a sentence: its first line, or else its kind.

    >>> first_line(ValueError("no such file\nstack trace"))
    'no such file'
    >>> first_line(TimeoutError())
    'TimeoutError'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def nearest(word: str, known: Iterable[str]) -> str:
    """What was meant, perhaps, in brackets.

    >>> nearest("resfl", ["ressfl", "patrol"])
    ' (did you mean ressfl?)'
    """
    found = get_close_matches(word, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""
