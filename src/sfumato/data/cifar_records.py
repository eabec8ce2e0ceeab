"""The two official file formats of CIFAR, as functions from bytes to arrays."""

import numpy as np
import numpy.typing as npt

from sfumato.data.unpickle import load_plain_pickle
from sfumato.errors import DataError

__all__ = ["Records", "parse_binary", "parse_pickle"]

Records = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Pixels (n, 3072): red, green, blue, each 32 rows of 32; and labels (n,)."""

_PIXELS = 3 * 32 * 32


def parse_binary(content: bytes, name: str, label_bytes: int, num_classes: int) -> Records:
    """Records of `label_bytes` labels (CIFAR-10: the class; CIFAR-100: superclass, class) and 3072 pixels.

    Raises:
        DataError: the size is no multiple of a record's, or a label is out of range; `name` says where.
    """
    record = label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{name} has {len(content)} bytes, which is not a multiple of {record}, the size of a record: "
            "it is truncated or another file; get it anew"
        )
    table = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    labels = table[:, label_bytes - 1].astype(np.int64)
    _check_labels(labels, name, num_classes)
    return table[:, label_bytes:], labels


def parse_pickle(content: bytes, name: str, label_key: str, num_classes: int) -> Records:
    """A pickled dictionary with `data`, uint8 (n, 3072), and a list of n labels; keys are bytes or str.

    Raises:
        DataError: it is another thing, or a label is out of range; `name` says where.
    """
    batch = load_plain_pickle(content, name)
    fields = batch if isinstance(batch, dict) else {}
    pixels, labels = (fields.get(key.encode(), fields.get(key)) for key in ("data", label_key))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (_PIXELS,)
        or not isinstance(labels, list)
        or any(type(label) is not int for label in labels)
        or len(labels) != len(pixels)
        or not labels
    ):
        raise DataError(
            f"{name} is not a CIFAR batch: expected a dictionary with `data`, uint8 of shape (n, {_PIXELS}), and "
            f"a list `{label_key}` of n labels; get it anew from the official archive"
        )
    classes = np.array(labels, dtype=np.int64)
    _check_labels(classes, name, num_classes)
    return pixels, classes


def _check_labels(labels: npt.NDArray[np.int64], name: str, num_classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{name}: image {wrong[0]} has the label {labels[wrong[0]]}, outside 0 .. {num_classes - 1}: "
            "the file is damaged or belongs to another data set; get it anew"
        )
