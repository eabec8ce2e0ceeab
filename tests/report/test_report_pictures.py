import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import FeatureError, StorageError
from sfumato.report.pictures import png_data_uri, save_side_by_side


def opened(uri: str) -> Image.Image:
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_a_strip_magnifies_every_pixel_to_a_square():
    x = torch.zeros(3, 1, 8, 8)
    x[1, 0, 2, 5] = 1.0
    image = opened(png_data_uri(x))
    assert image.size == (3 * 64 + 2 * 4, 64)  # 8 pixels by a factor of 8, gaps of 4
    assert image.mode == "LA"
    grey, alpha = np.asarray(image)[..., 0].astype(int), np.asarray(image)[..., 1]
    assert set(np.unique(grey)) == {0, 255}  # nearest neighbour: nothing in between
    rows, columns = np.nonzero(grey)
    assert (rows.min(), rows.max()) == (16, 23)
    assert (columns.min(), columns.max()) == (68 + 40, 68 + 47)
    assert (alpha[:, 64:68] == 0).all()
    assert (alpha[:, 68:132] == 255).all()


@pytest.mark.parametrize(("side", "shown"), [(8, 64), (28, 84), (32, 64), (48, 96), (64, 64), (100, 100)])
def test_large_images_keep_their_size(side, shown):
    assert opened(png_data_uri(torch.rand(2, 3, side, side))).size == (2 * shown + 4, shown)


def test_colours_and_values_outside_the_range():
    x = torch.tensor([2.0, -1.0, 0.5]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert opened(png_data_uri(x)).convert("RGB").getpixel((0, 0)) == (255, 0, 128)


def test_side_by_side_has_a_labelled_row_for_each(tmp_path):
    path = tmp_path / "deep" / "picture.png"
    x = torch.ones(5, 1, 8, 8)
    save_side_by_side(path, x, {"reconstructed λ": 0 * x})
    image = Image.open(path).convert("L")
    width = 5 * 68 - 4
    assert image.height == 2 * (64 + 2 * 4)
    left = image.width - width - 4
    assert left > 60  # room for the label
    pixels = np.asarray(image)
    assert (pixels[4:68, left : left + width] == 255).all()
    assert (pixels[76:140, left : left + 64] == 0).all()
    assert (pixels[76:140, left + 64 : left + 68] == 255).all()
    for top in (0, 72):
        assert pixels[top : top + 72, : left - 4].min() < 100  # something is written


def test_side_by_side_in_colour_is_the_same_each_time(tmp_path):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("a.png", "b.png"):
        save_side_by_side(tmp_path / name, x, {"decoder": x.flip(2), "gan": x.flip(3)})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = Image.open(tmp_path / "a.png")
    assert image.height == 3 * 72
    expected = x[0].permute(1, 2, 0).mul(255).round().byte().repeat_interleave(2, 0).repeat_interleave(2, 1)
    left = image.width - (3 * 68 - 4) - 4
    assert np.array_equal(np.asarray(image)[4:68, left : left + 64], expected.numpy())


def test_errors_name_cause_and_remedy(tmp_path):
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(FeatureError, match=r"'reconstructed' has shape \(3, 1, 8, 8\).*same images in the same order"):
        save_side_by_side(tmp_path / "x.png", x, {"reconstructed": torch.rand(3, 1, 8, 8)})
    with pytest.raises(FeatureError, match=r"n at least 1, got \(0, 1, 8, 8\)"):
        png_data_uri(x[:0])
    with pytest.raises(FeatureError, match=r"grey or \(n, 3, H, W\) RGB"):
        png_data_uri(torch.rand(2, 2, 8, 8))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_side_by_side(tmp_path / "file" / "x.png", x, {})
