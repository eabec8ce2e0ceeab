import io

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import FeatureError
from sfumato.report.pictures import labelled_rows


def images(value: float, count: int = 3) -> torch.Tensor:
    return torch.full((count, 3, 64, 64), value)


ROWS = {
    "original": images(1.0),
    "PATROL\ndecoder, MSE 0.0214": images(0.5),
    "PATROL + CEM\nGAN": images(0.0),
}


def test_originals_first_then_a_labelled_row_for_each():
    pixels = np.asarray(Image.open(io.BytesIO(labelled_rows(ROWS))).convert("L"))
    assert pixels.shape[0] == 3 * 72
    left = pixels.shape[1] - (3 * 68 - 4) - 4
    for index, value in enumerate((255, 128, 0)):
        row = pixels[72 * index + 4 : 72 * index + 68, left:]
        for image in range(3):
            assert (row[:, 68 * image : 68 * image + 64] == value).all()
    for index, lines in enumerate((1, 2, 2)):
        ink = (pixels[72 * index : 72 * (index + 1), : left - 4] < 128).any(1)
        assert np.count_nonzero(np.diff(ink.astype(int)) == 1) == lines  # runs of rows with ink


def test_the_label_column_is_as_wide_as_its_longest_line():
    narrow = Image.open(io.BytesIO(labelled_rows({"a": images(1.0)})))
    wide = Image.open(io.BytesIO(labelled_rows({"a\n" + 30 * "b": images(1.0)})))
    assert wide.width > narrow.width + 150


def test_the_picture_is_the_same_each_time():
    assert labelled_rows(ROWS) == labelled_rows(ROWS)


def test_errors_name_cause_and_remedy():
    with pytest.raises(FeatureError, match=r"'PATROL, GAN' has shape \(2, 3, 64, 64\).*same images in the same order"):
        labelled_rows({"original": images(1.0), "PATROL\nGAN": images(0.0, 2)})
    with pytest.raises(FeatureError, match="no pictures to show; give at least one row"):
        labelled_rows({})
