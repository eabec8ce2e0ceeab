"""What the device takes for an image, and that it is what training saw."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from edge_support import IMAGE, pixels_of
from PIL import Image

from sfumato.deploy.manifest import InputSpec
from sfumato.deploy.preprocess import prepare
from sfumato.errors import DataError

SPEC = InputSpec("image", IMAGE)


def damaged_jpeg() -> bytes:
    """With an end in the middle, behind which decoders put grey."""
    whole = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole, "JPEG", quality=95)
    data = whole.getvalue()
    return data[: len(data) // 2] + b"\0\0\xff\xd9" + data[len(data) // 2 :]


def png(bits: int, width: int, height: int, rows: int | None = None) -> bytes:
    """An RGB PNG by its specification; Pillow drops half of 16 bits without a word."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    lines = bytes((1 + width * 3 * bits // 8) * (height if rows is None else rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (damaged_jpeg(), "remature end"),
        (png(8, 12, 12)[:48], "."),
        (png(16, 5, 6), "more than 8 bits"),
        (png(8, 12_000, 12_000, rows=1), "claims to have 12000 x 12000 pixels"),
        (b"\xff\xd8\xff", "."),
        (b"hello", "."),
        (b"", "it is empty"),
    ],
    ids=["a damaged JPEG", "half a PNG", "16 bits of RGB", "a bomb", "half a head", "text", "nothing"],
)
def test_files_are_refused_as_in_training(tmp_path, data, reason):
    from sfumato.data.images import read_image

    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for read in (read_image, lambda one: prepare(one, SPEC)):
        with pytest.raises(DataError, match=f"cannot read the image .*{reason}") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(png(8, 5, 6))
    assert prepare(path, SPEC).max() == read_image(path).max() == 0


BAD_IMAGES = {
    "nothing": (Path("none.png"), "there is no image"),
    "an object": (3, "give a path, a Pillow image or an array"),
    "float pixels of another shape": (np.zeros((6, 5, 3), np.float32), "the encoder takes"),
    "NaN": (np.full(IMAGE, np.nan, np.float32), "NaN"),
    "255": (np.full(IMAGE, 255, np.float32), r"outside \[0, 1\]"),
    "infinity": (np.full(IMAGE, np.inf), r"outside \[0, 1\]"),
    "integers": (np.zeros((6, 5, 3), np.int64), "give uint8 pixels"),
    "four channels": (np.zeros((6, 5, 4), np.uint8), "4 channels"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), "give uint8 pixels"),
    "16 bits": (Image.fromarray(np.zeros((6, 5), np.int32)), "more than 8 bits"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_is_none(name):
    image, said = BAD_IMAGES[name]
    with pytest.raises(DataError, match=said) as caught:
        prepare(image, SPEC)
    assert "\n" not in str(caught.value)


def test_a_file_a_pillow_image_and_its_pixels_are_the_same(tmp_path):
    pixels = pixels_of()
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    scaled = (pixels / 255).astype(np.float32).transpose(2, 0, 1)
    for one in (pixels, path, str(path), Image.fromarray(pixels), scaled):
        assert np.array_equal(prepare(one, SPEC), scaled[None])


def test_other_sizes_and_colours_are_converted_as_in_training(tmp_path):
    from sfumato.data.images import read_image

    big = np.random.default_rng(3).integers(0, 256, (20, 31), np.uint8)
    path = tmp_path / "grey.png"
    Image.fromarray(big).save(path)
    trained_on = (read_image(path, IMAGE[1:]) / 255).astype(np.float32)
    for one in (path, big):
        assert np.array_equal(prepare(one, SPEC)[0], trained_on)


def test_exact_size_where_the_bundle_asks_for_it():
    exact = InputSpec("image", IMAGE, "exact")
    assert prepare(pixels_of(), exact).shape == (1, *IMAGE)
    with pytest.raises(DataError, match="has 7 x 6 pixels, the encoder takes 5 x 6"):
        prepare(np.zeros((6, 7, 3), np.uint8), exact)


def test_minus_zero_is_zero():
    """Equal images have equal bytes, and so equal noise."""
    image = np.zeros(IMAGE, np.float32)
    assert prepare(image, SPEC).tobytes() == prepare(-image, SPEC).tobytes()
