"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32 x 32 pixels, in every form in which people have them.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html
"""

import functools
import http.client
import tarfile
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sfumato.data.images import of_size, read_folders
from sfumato.data.imageset import DataSets, ImageSet, Progress, of_arrays
from sfumato.data.scan import LOSSY_SUFFIXES, describe, readable, scan
from sfumato.data.unpickle import load_plain_pickle
from sfumato.errors import DataError
from sfumato.files import sha256_of, write_atomic

__all__ = ["CIFAR10", "CIFAR100", "Cifar", "Form", "fetch", "load_cifar", "load_cifar10", "load_cifar100"]

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30
_MAX_BYTES = 1 << 29  # the largest official file has 154 MB; a small archive must not be able to fill the memory

Records = tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]]]
"""Pixels (n, 3072): red, green, blue, each 32 rows of 32; and labels (n,)."""

_TEN = """
airplane automobile bird cat deer dog frog horse ship truck
"""
_HUNDRED = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


class Form(NamedTuple):
    """One official form of the data: an archive, the folder in it, and the files in that folder."""

    kind: Literal["binary", "python"]
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]


class Cifar(NamedTuple):
    """Where one of the two data sets lies and how its records look."""

    name: str
    classes: tuple[str, ...]  # in the order of the labels
    label_bytes: int  # in front of the pixels of a binary record; the last of them is the class
    label_key: str  # of the classes in a pickle
    forms: tuple[Form, ...]  # the preferred one first, which is the one to download
    url: str  # of the first form's archive
    sha256: str


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10 = Cifar(
    "cifar10", tuple(_TEN.split()), 1, "labels",
    (
        Form(
            "binary", "cifar-10-binary.tar.gz", "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES),
            ("test_batch.bin",),
        ),
        Form("python", "cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, ("test_batch",)),
    ),
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)  # fmt: skip
CIFAR100 = Cifar(
    "cifar100", tuple(_HUNDRED.split()), 2, "fine_labels",
    (
        Form("binary", "cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), ("test.bin",)),
        Form("python", "cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",)),
    ),
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)  # fmt: skip


def load_cifar(which: Cifar, data_dir: Path | str, *, progress: Progress | None = None) -> DataSets:
    """Read a CIFAR data set from the first of these that `data_dir` holds.

    1. The official binary form: the folder from the archive (`cifar-10-batches-bin`), its files directly in `data_dir`,
       or the archive itself (`cifar-10-binary.tar.gz`), which is read without unpacking it.
    2. The official Python form in the same three ways, through the restricted `load_plain_pickle`.
    3. Class folders (see `load_folder`), with a caveat if their files are lossy.
    4. Nothing, or `data_dir` does not exist: the official binary archive is downloaded and checked first; `progress`
       then counts bytes instead of images.
    """
    folder = Path(data_dir)
    for form in which.forms:
        source = _find(form, folder)
        if source is not None:
            return _read_official(which, form, source, progress)
    if (folder / "train").is_dir():
        return _read_class_folders(which, folder, progress)
    if folder.exists() and not (folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir())):
        archives = " or ".join(form.archive for form in which.forms)
        raise DataError(
            f"no {which.name} in {folder}: expected {archives} from {_PAGE}, the folder in it, or class folders "
            f"(train/{which.classes[0]}/..., test/{which.classes[0]}/...), but found {describe(folder)}; "
            "choose another folder, or an empty one to download it"
        )
    form = which.forms[0]
    fetch(which.url, folder / form.archive, sha256=which.sha256, page=_PAGE, progress=progress)
    return _read_official(which, form, folder / form.archive, progress)


load_cifar10 = functools.partial(load_cifar, CIFAR10)
load_cifar100 = functools.partial(load_cifar, CIFAR100)


def fetch(url: str, path: Path, *, sha256: str, page: str, progress: Progress | None = None) -> None:
    """Download `url` to `path`, which appears only once its SHA-256 is the expected one.

    `page` is where a person finds the file; `progress` gets the bytes so far and in all (0 if the server does not say).
    """
    from urllib.request import urlopen

    by_hand = f"get {path.name} from {page} and put it into {path.parent}"

    def online(action: Any, *args: Any, **options: Any) -> Any:
        # Errors of the network and of the disk are both OSError; only the former may be blamed on the network.
        try:
            return action(*args, **options)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise DataError(f"cannot download {url}: {reason}; without a network connection, {by_hand}") from error

    def write(temporary: Path) -> None:
        response = online(urlopen, url, timeout=_TIMEOUT_SECONDS)
        with response, temporary.open("wb") as handle:
            total = int(response.headers.get("Content-Length") or 0)
            while block := online(response.read, _BLOCK):
                handle.write(block)
                if progress is not None:
                    progress(handle.tell(), total)
        if (digest := sha256_of(temporary)) != sha256:
            raise DataError(
                f"{url} gave {temporary.stat().st_size} bytes with SHA-256 {digest[:16]}... instead of "
                f"{sha256[:16]}...: an interrupted or altered download, which was removed; try again, or {by_hand}"
            )

    write_atomic(path, write)


def _find(form: Form, folder: Path) -> Path | None:
    if (folder / form.folder).is_dir():
        return folder / form.folder
    if (folder / form.train[0]).is_file():
        return folder
    return folder / form.archive if (folder / form.archive).is_file() else None


def _read_official(which: Cifar, form: Form, source: Path, progress: Progress | None) -> DataSets:
    contents = read_members(source, form.folder, form.train + form.test, _PAGE)

    def part(names: tuple[str, ...]) -> ImageSet:
        parse = _parse_binary if form.kind == "binary" else _parse_pickle
        found = []
        for name in names:
            pixels, labels = parse(which, contents.pop(name), f"{source / name}")
            found.append(
                of_arrays(pixels.reshape(-1, *_SHAPE), labels, which.classes, f"{source / name}", "get it anew")
            )
        images, classes = (torch.cat([getattr(one, what) for one in found]) for what in ("images", "labels"))
        return ImageSet(images, classes, which.classes)

    train, test = part(form.train), part(form.test)
    if progress is not None:
        progress(len(train) + len(test), len(train) + len(test))
    return DataSets(which.name, train, test)


def _read_class_folders(which: Cifar, folder: Path, progress: Progress | None) -> DataSets:
    train, test = scan(folder)
    if train.classes != which.classes:
        raise DataError(
            f"{folder} holds the classes {', '.join(train.classes[:4])}, ..., not the {len(which.classes)} of "
            f"{which.name} ({', '.join(which.classes[:4])}, ...); load it as `folder`, or choose another folder"
        )
    lossy = any(Path(file).suffix.lower() in LOSSY_SUFFIXES for file in train.files + test.files)
    caveat = (
        "The images were read from lossy files (JPEG), which are smoother than the official bits: reconstruction "
        "errors compare with each other, but not digit by digit with published ones."
    )
    sets = read_folders(
        which.name, train, test, progress=progress, caveat=caveat if lossy else "", skip_unreadable=None
    )
    return of_size(sets, 32, f"{folder}", "load it as `folder`, or choose another folder")


def read_members(source: Path, folder: str, names: tuple[str, ...], page: str) -> dict[str, bytes]:
    """The content of `folder/<name>` for each name, from the archive `source`, or of `source/<name>` if it is a folder.

    Members are compared by their full name and read into memory: nothing is written, so no path in an archive can lead
    anywhere.
    """
    if source.is_dir():
        with readable():
            found = {name: (source / name).read_bytes() for name in names if (source / name).is_file()}
    else:
        found = _from_archive(source, folder, names, page)
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{source} has no {', '.join(missing)}; get the complete archive from {page}")
    return found


def _from_archive(source: Path, folder: str, names: tuple[str, ...], page: str) -> dict[str, bytes]:
    wanted = {f"{folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(source, "r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isfile():
                    continue
                if member.size > _MAX_BYTES:
                    raise tarfile.TarError(f"{member.name} claims {member.size} bytes")
                handle = tar.extractfile(member)
                found[name] = handle.read() if handle is not None else b""
                if len(found) == len(wanted):
                    break
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{source} is truncated or damaged ({error}); delete it and get it anew from {page}") from error
    return found


def _parse_binary(which: Cifar, content: bytes, name: str) -> Records:
    """Records of labels (CIFAR-10: the class; CIFAR-100: superclass, class) and 3072 pixels."""
    record = which.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{name} has {len(content)} bytes, which is not a multiple of {record}, the size of a record: "
            "it is truncated or another file; get it anew"
        )
    table = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return table[:, which.label_bytes :], table[:, which.label_bytes - 1]


def _parse_pickle(which: Cifar, content: bytes, name: str) -> Records:
    """A pickled dictionary with `data`, uint8 (n, 3072), and a list of n labels; keys are bytes or str."""
    batch = load_plain_pickle(content, name)
    fields = batch if isinstance(batch, dict) else {}
    pixels, labels = (fields.get(key.encode(), fields.get(key)) for key in ("data", which.label_key))
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
            f"a list `{which.label_key}` of n labels; get it anew from the official archive"
        )
    return pixels, np.array(labels, dtype=np.int64)
