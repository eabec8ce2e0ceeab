"""Fashion-MNIST and MNIST: 70,000 grey images of 28 x 28 pixels in ten classes, in the IDX files of their makers.

H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
arXiv:1708.07747, 2017; https://github.com/zalandoresearch/fashion-mnist (MIT licence, Zalando SE)

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition", Proceedings of
the IEEE 86, 1998; http://yann.lecun.com/exdb/mnist/, which also describes the format.
"""

import functools
import gzip
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from sfumato.data.images import Size, both_sides, resized
from sfumato.data.imageset import DataSets, ImageSet, Progress, of_arrays
from sfumato.data.scan import describe
from sfumato.errors import ConfigError, DataError

__all__ = ["FASHION_MNIST_FOLDER", "IDX_CLASSES", "load_fashion_mnist", "load_idx", "load_mnist", "read_idx"]

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the files."""

IDX_CLASSES = {
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "mnist": tuple("0123456789"),
}  # fmt: skip
"""The data sets in this form, and their classes in the order of the labels."""

_PAGES = {
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
    "mnist": "http://yann.lecun.com/exdb/mnist/",
}
_SIDE = 28
_UNSIGNED_BYTE = 8  # the format's code for the type of the values
_MOST_VALUES = 1 << 27  # three times the largest official file: what a false header may claim of the memory


def load_idx(
    name: str, data_dir: Path | str | None = None, *, size: Size = None, progress: Progress | None = None
) -> DataSets:
    """Read `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two `t10k-` files, each as it is or with `.gz`.

    The two data sets have the same file names and shapes: only the folder says which one it is; for `fashion-mnist`
    none is the folder of Debian's package. `size` resizes the images (see `resized`); 14 averages 2 x 2 pixels.
    """
    sides = both_sides(size)
    folder = _debian(name) if data_dir is None else Path(data_dir)
    train, test = (_read_part(folder, part, name, sides) for part in ("train", "t10k"))
    if progress is not None:
        progress(len(train) + len(test), len(train) + len(test))
    caveat = "" if sides in (None, (_SIDE, _SIDE)) else f"The images were resized to {sides[0]}x{sides[1]}."
    return DataSets(name, train, test, caveat)


load_fashion_mnist = functools.partial(load_idx, "fashion-mnist")
load_mnist = functools.partial(load_idx, "mnist")


def _debian(name: str) -> Path:
    if name == "fashion-mnist" and FASHION_MNIST_FOLDER.is_dir():
        return FASHION_MNIST_FOLDER
    package = (
        f"; Debian's package dataset-fashion-mnist puts them into {FASHION_MNIST_FOLDER}, which is found by itself"
        if name == "fashion-mnist"
        else ""
    )
    raise ConfigError(
        f"{name} needs a folder: pass data_dir (--data-dir) with train-images-idx3-ubyte.gz and the three files beside "
        f"it from {_PAGES[name]}{package}"
    )


def _read_part(folder: Path, part: str, name: str, sides: tuple[int, int] | None) -> ImageSet:
    pixels, where = _read_file(folder, f"{part}-images-idx3-ubyte", 3, name)
    if pixels.shape[1:] != (_SIDE, _SIDE):
        raise DataError(
            f"{where} holds images of {pixels.shape[1]}x{pixels.shape[2]} pixels, but those of {name} have "
            f"{_SIDE}x{_SIDE}; choose the folder of the official files from {_PAGES[name]}"
        )
    labels, beside = _read_file(folder, f"{part}-labels-idx1-ubyte", 1, name)
    if len(labels) != len(pixels):
        raise DataError(
            f"{where} holds {len(pixels)} images, but {beside} {len(labels)} labels; get both anew from {_PAGES[name]}"
        )
    found = of_arrays(pixels[:, None], labels, IDX_CLASSES[name], f"{beside}", f"get it anew from {_PAGES[name]}")
    return found if sides is None else replace(found, images=resized(found.images, sides))


def _read_file(folder: Path, file: str, ndim: int, name: str) -> tuple[npt.NDArray[np.uint8], Path]:
    """The values of a file that lies in `folder` as it is or compressed, and which of the two it was."""
    plain, packed = folder / file, folder / f"{file}.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise DataError(
            f"no {name} in {folder}: {file}.gz is missing (found {describe(folder)}); get all four files from "
            f"{_PAGES[name]}, or name their folder with --data-dir"
        )
    anew = f"get it anew from {_PAGES[name]}"
    try:
        with path.open("rb") as handle:
            if path == plain:
                return read_idx(handle, ndim), path
            with gzip.open(handle) as unpacked:
                return read_idx(unpacked, ndim), path
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); {anew}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the file's permissions") from error
    except ValueError as error:
        raise DataError(f"{path} {error}: it is truncated, damaged or another file; {anew}") from error


def read_idx(handle: IO[bytes] | gzip.GzipFile, ndim: int) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, or a `ValueError` whose text goes on from the file's name.

    Two zero bytes, one for the type of the values (8: unsigned byte), one for the number of dimensions, their sizes as
    big-endian 32-bit numbers, then the values, the last index running fastest.

    >>> import io
    >>> read_idx(io.BytesIO(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])), 1).tolist()
    [7, 8, 9]
    """
    expected = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    magic = handle.read(4)
    if magic != expected:
        raise ValueError(f"begins with the bytes {magic.hex() or '(none)'} instead of {expected.hex()}")
    sizes = handle.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(f"ends within the sizes of its {ndim} dimensions")
    shape = struct.unpack(f">{ndim}I", sizes)
    count, claim = math.prod(shape), f"claims {' x '.join(map(str, shape))} values"
    if count > _MOST_VALUES:
        raise ValueError(f"{claim}, more than the {_MOST_VALUES:,} that are read")
    values = handle.read(count + 1)  # one too many: shows a file that is too long, and makes gzip compare its checksum
    if len(values) != count:
        raise ValueError(f"{claim} and holds {f'only {len(values)}' if len(values) < count else 'more'}")
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(shape)
