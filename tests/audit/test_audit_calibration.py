"""Attacks are tried on the identity channel first, within a share of the time."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from audit_cases import SUITE, audit

from sfumato.audit import verdict
from sfumato.audit.verdict import calibrate
from sfumato.data import ImageSet


class Clock:
    """Time that passes only where somebody works."""

    now = 100.0

    def monotonic(self):
        return self.now


def of_size(height, width):
    return SimpleNamespace(sets=SimpleNamespace(test=SimpleNamespace(image_shape=(3, height, width))))


@pytest.mark.parametrize(
    ("seconds", "first", "sizes"),
    [
        (0.0, 1.0, []),
        (0.1, 1.0, [[16, 16]]),  # one is tried where there is any time
        (60.0, 1.0, [[16, 16]]),  # the next would take 64 s
        (66.0, 1.0, [[16, 16], [32, 32]]),
        (4000.0, 1.0, [[16, 16], [32, 32], [64, 40]]),
        (1e9, 1.0, [[16, 16], [32, 32], [64, 40], [100, 40]]),
    ],
)
def test_calibration_keeps_its_share_of_the_time(monkeypatch, seconds, first, sizes):
    clock, tried = Clock(), []

    def work(context, height, width):
        tried.append([height, width])
        clock.now += first * (height * width / 256) ** 3  # as a linear solution does
        return {"psnr": 50.0, "by": "ridge"}

    monkeypatch.setattr(verdict, "time", clock)
    monkeypatch.setattr(verdict, "_calibrated", work)
    found = calibrate(of_size(100, 40), seconds)
    assert tried == sizes
    assert clock.now - 100 <= max(seconds, first)
    assert found == ({"psnr": 50.0, "by": "ridge", "size": sizes[-1]} if sizes else None)


@pytest.mark.parametrize("gradients", [True, False])
def test_large_images_are_calibrated_on_their_middle(gradients, monkeypatch):
    """Few images of noise cannot be learned; a middle without noise can, and only there."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, 22, 80), generator=random, dtype=torch.uint8)
    noisy = ImageSet(pixels, torch.zeros(40, dtype=torch.int64), ("one",))
    plain = ImageSet(pixels.clone(), noisy.labels, ("one",))
    plain.images[:, :, 3:19, 32:48] = 77
    for images, by in ((plain, "ridge"), (noisy, "optimization")):
        unseen = images.subset(range(36, 40))
        context = SimpleNamespace(
            sets=SimpleNamespace(train=images.subset(range(36)), test=unseen),
            test=SimpleNamespace(first=lambda count, unseen=unseen: SimpleNamespace(images=unseen)),
            gradients=gradients,
            device=torch.device("cpu"),
            seed=0,
        )
        ticks = itertools.count()
        monkeypatch.setattr(verdict, "time", SimpleNamespace(monotonic=lambda ticks=ticks: next(ticks)))
        found = calibrate(context, 1.5)  # a second passes between two looks at the clock
        assert (found["by"], found["size"]) == (by, [16, 16])
        assert found["psnr"] > 40


def test_without_time_for_calibration_nothing_passes(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.audit.run.calibrate", lambda context, seconds: None)
    result = audit(tmp_path, suite=SUITE[:1]).result
    assert result["calibration"] is None
    (line,) = (one for one in result["requirements"] if one["name"] == "calibration on the identity")
    assert not line["met"]
    assert line["sentence"] == (
        "the attacks were not calibrated on the identity channel, for which there was no time; give more --minutes"
    )
