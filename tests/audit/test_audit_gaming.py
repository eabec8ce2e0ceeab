"""Encoders that give the image away whole and hide it from an attacker in one way each: none of them may pass."""

from dataclasses import replace

import pytest
import torch
from audit_cases import tiny_subject
from torch import nn

from sfumato.audit import Subject, conclude, parse_threshold, run_audit
from sfumato.audit.suite import load_suite
from sfumato.split import Channel, SplitModel

SIZE = 16
GATE = "psnr_worst5 > 35"  # answering with the mean image reaches 27
PIECES = ("ridge", "nearest", "optimization", "cloud:ridge", "cloud:nearest")


class Beside(nn.Module):
    """The image beside `count` coordinates of scale `size`: a hash of it, or its brightness in other units."""

    def __init__(self, size, count=1, *, honest=False):
        super().__init__()
        self.size, self.count, self.honest = size, count, honest

    def forward(self, x):
        plain = x.flatten(1)
        total = plain.sum(1, keepdim=True)
        large = total / SIZE if self.honest else torch.sin(1e4 * total)
        return torch.cat([plain, self.size * large.expand(-1, self.count)], 1)


class Cipher(nn.Module):
    """A Feistel network over 8-bit pixels whose key is public: a bijection that looks like noise."""

    def __init__(self, *, undo=False):
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.undo = undo
        self.register_buffer("key", torch.randint(1, 2**20, (6, SIZE // 2, SIZE // 2), generator=random))

    def mixed(self, number, half):
        value = half @ self.key[number] + number
        value = (value * value + (value >> 7) * 2654435761) % 2**31
        return ((value >> 9) ^ (value >> 3)) % 256

    def forward(self, x):
        left, right = (x.flatten(1) * 255).round().long().chunk(2, 1)
        for number in reversed(range(6)) if self.undo else range(6):
            if self.undo:
                left, right = (right - self.mixed(number, left)) % 256, left
            else:
                left, right = right, (left + self.mixed(number, right)) % 256
        return torch.cat([left, right], 1).float() / 255


class Answer(nn.Module):
    """A cloud that recognises something in the plain image, after `before` has brought it back."""

    def __init__(self, before=None):
        super().__init__()
        self.before = before or nn.Identity()
        self.weight = nn.Parameter(torch.randn(SIZE, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, z):
        return self.before(z)[:, :SIZE] @ self.weight


KINDS = {
    "a giant hash": (Beside(1e6), Answer(), {}),
    "many giant hashes": (Beside(1e8, 16), Answer(), {}),
    "brightness in other units": (Beside(1e6, honest=True), Answer(), {"noise_std": 0.01}),
    "a cipher that the cloud undoes": (Cipher(), Answer(Cipher(undo=True)), {}),
    "the image itself": (nn.Flatten(), Answer(), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_encoder_that_gives_the_image_away_passes(kind, tmp_path):
    edge, cloud, channel = KINDS[kind]
    sets = tiny_subject(test=120).sets
    subject = Subject(kind, SplitModel(edge, Channel(**channel), cloud), classifies=True)
    suite = [replace(piece, images=16) if piece.name == "optimization" else piece for piece in load_suite()]
    suite = [piece for piece in suite if piece.name in PIECES]
    result = run_audit(subject, sets, tmp_path, minutes=1.0, suite=suite).result
    judged = conclude(result, [parse_threshold(GATE)])
    assert judged["verdict"]["outcome"] == "failed", judged["verdict"]
    lossless = not channel
    assert judged["verdict"]["headline"].startswith("Nothing is lost on the way") is lossless


def test_a_cipher_that_nobody_undoes_is_not_judged(tmp_path):
    """No attack reads it, and no attack could: the verdict says so instead of calling that safe."""
    sets = tiny_subject(test=120).sets
    subject = Subject("cipher", SplitModel(Cipher(), Channel(), nn.Identity()), classifies=False)
    suite = [piece for piece in load_suite() if piece.name in PIECES]
    result = run_audit(subject, sets, tmp_path, minutes=1.0, suite=suite).result
    verdict = conclude(result, [parse_threshold(GATE)])["verdict"]
    assert verdict["outcome"] == "not judged"
    (line,) = [one for one in result["requirements"] if one["name"] == "not obfuscated"]
    assert not line["met"]
    assert "moves the feature by" in line["sentence"]
