import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from sfumato.data.images import read_image
from sfumato.errors import DataError


@pytest.fixture
def photo():
    """A smooth colour image, so that JPEG keeps it nearly as it is."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([x * 8, y * 10, 255 - x * 4 - y * 4], axis=2).astype(np.uint8)


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_png_is_read_exactly(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 24, 32)
    assert np.array_equal(pixels, photo.transpose(2, 0, 1))


def test_jpeg_is_what_pillow_decodes(tmp_path, photo):
    (tmp_path / "a.jpg").write_bytes(jpeg(photo, quality=90))
    pixels = read_image(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))
    assert np.abs(pixels.astype(int) - photo.transpose(2, 0, 1)).max() < 16


def test_jpeg_without_simplejpeg_is_the_same(tmp_path, photo, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg(photo))
    expected = read_image(tmp_path / "a.jpg")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_becomes_three_equal_channels(tmp_path, suffix):
    grey = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))
    Image.fromarray(grey).save(tmp_path / f"a{suffix}")
    pixels = read_image(tmp_path / f"a{suffix}")
    assert pixels.shape == (3, 16, 16)
    assert (pixels == pixels[:1]).all()


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "1"])
def test_other_modes_become_rgb(tmp_path, photo, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.fromarray(photo).convert(mode).save(tmp_path / name)
    assert read_image(tmp_path / name).shape == (3, 24, 32)


def test_a_wrong_suffix_does_not_matter(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(read_image(tmp_path / "a.jpg"), photo.transpose(2, 0, 1))


def test_resizing_is_pillows_bilinear_and_leaves_the_right_size_alone(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", (12, 16))
    expected = Image.fromarray(photo).resize((16, 12), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))
    assert np.array_equal(read_image(tmp_path / "a.png", (24, 32)), photo.transpose(2, 0, 1))


def test_a_jpeg_cut_anywhere_is_refused_by_name(tmp_path, photo):
    data = jpeg(photo)
    for cut in range(1, len(data), 37):
        (tmp_path / "cut.jpg").write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"cannot read the image .*cut\.jpg: .*replace the file .*or remove it"):
            read_image(tmp_path / "cut.jpg")


def test_a_png_cut_in_half_is_refused(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cannot read the image .*a\.png"):
        read_image(tmp_path / "a.png")


def test_a_damaged_jpeg_is_not_filled_with_grey(tmp_path):
    data = bytearray(jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd9"  # an end-of-image marker in the middle of the data
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.jpg: .*[Pp]remature end"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "it is empty"), (b"not an image", "truncated or no image")], ids=["empty", "text"]
)
def test_what_is_no_image_is_refused(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png: .*{reason}"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png")


def sixteen_bit_png(channels):
    """8x8 pixels of 16 bits; Pillow writes only grey ones."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(f">{8 * channels}H", *range(8 * channels))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff_of_16_bits():
    """2x1 pixels of 3 x 16 bits, as the format says."""
    tags = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 128),
            (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 12)]  # fmt: skip
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + struct.pack("<I", tag[3]) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return head + struct.pack("<3H", 16, 16, 16) + struct.pack("<6H", *range(6))


@pytest.mark.parametrize(
    "content",
    [
        *map(sixteen_bit_png, (1, 2, 3, 4)),
        b"P6 2 1 65535\n" + bytes(12),
        b"P5 2 1 65535\n" + bytes(4),
        b"P6 2 1 1023\n" + bytes(12),
        tiff_of_16_bits(),
    ],
    ids=["grey", "grey + alpha", "rgb", "rgba", "ppm", "pgm", "ppm 10 bits", "tiff"],
)
def test_more_than_8_bits_are_refused(tmp_path, content):
    (tmp_path / "deep.png").write_bytes(content)
    with pytest.raises(DataError, match=r"deep\.png: its pixels have more than 8 bits per channel .* 8-bit copy"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("content", [b"P6 2 1 255\n" + bytes(range(6)), b"P5 2 1 255\n\7\7", b"P4 8 1\n\xff"])
def test_pnm_of_8_bits_is_read(tmp_path, content):
    (tmp_path / "a.ppm").write_bytes(content)
    assert read_image(tmp_path / "a.ppm").shape[0] == 3
