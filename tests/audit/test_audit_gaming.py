"""Encoders that give the image away whole and hide it from an attacker in one way each: none of them may pass."""

from dataclasses import replace

import pytest
import torch
from audit_cases import tiny_subject
from torch import nn

from sfumato.attacks import obfuscation
from sfumato.audit import Subject, conclude, parse_threshold, run_audit
from sfumato.audit.suite import load_suite
from sfumato.audit.verdict import what_is_lost
from sfumato.errors import FeatureError
from sfumato.split import Channel, SplitModel

SIZE = 16
GATE = "psnr_worst5 > 35"  # answering with the mean image reaches 27
CLOSED = ("ridge", "nearest", "cloud:ridge", "cloud:nearest")


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


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
def test_no_encoder_that_gives_the_image_away_passes(kind, tmp_path):
    edge, cloud, channel = KINDS[kind]
    sets = tiny_subject(test=120).sets
    subject = Subject(kind, SplitModel(edge, Channel(**channel), cloud), classifies=True)
    suite = [piece for piece in load_suite() if piece.name in CLOSED]
    result = run_audit(subject, sets, tmp_path, minutes=1.0, suite=suite).result
    judged = conclude(result, [parse_threshold(GATE)])
    assert judged["verdict"]["outcome"] == "failed", judged["verdict"]
    lossless = not channel
    assert judged["verdict"]["headline"].startswith("Nothing is lost on the way") is lossless


def test_a_cipher_that_nobody_undoes_is_not_judged(tmp_path):
    """No attack reads it, and no attack could: the verdict says so instead of calling that safe."""
    sets = tiny_subject(test=120).sets
    subject = Subject("cipher", SplitModel(Cipher(), Channel(), nn.Identity()), classifies=False)
    search = next(piece for piece in load_suite() if piece.name == "optimization")
    suite = [piece for piece in load_suite() if piece.name in CLOSED]
    suite.append(replace(search, images=8, settings={"iterations": 60, "restarts": 1, "choose_on": 2}))
    result = run_audit(subject, sets, tmp_path, minutes=1.0, suite=suite).result
    verdict = conclude(result, [parse_threshold(GATE)])["verdict"]
    assert verdict["outcome"] == "not judged"
    (line,) = [one for one in result["requirements"] if one["name"] == "not obfuscated"]
    assert not line["met"]
    assert "moves the feature by" in line["sentence"]


class Each(nn.Module):
    """An encoder that is a function of the pixels (n, d), and of how many calls there were before."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, x):
        self.calls += 1
        return self.function(x.flatten(1), self.calls)


ORDERS = torch.stack([torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed)) for seed in range(16)])
PHASES = torch.arange(SIZE)
SCRAMBLED = {
    "signs by parity": lambda x, _: x * ((x.sum(1, keepdim=True) * 16).long() % 2 * 2 - 1),
    "signs by brightness": lambda x, _: (
        (x - 0.5) * torch.sin(x.mean(1, keepdim=True) * 240 + torch.arange(SIZE)).sign()
    ),
    "remainders": lambda x, _: x * 37 % 1.0,
    "remainders of few turns": lambda x, _: x * 5 % 1.0,
    "orders by content": lambda x, _: x.gather(1, ORDERS[(x.mean(1) * 200).long() % 16]),
    "least significant digits": lambda x, _: (1e3 * (1e3 * x.sum(1, keepdim=True) + PHASES).sin()).round() + x,
}
HONEST = {
    "pixels": lambda x, _: x,
    "pixels in odd units": lambda x, _: x * torch.logspace(-6, 6, SIZE),
    "averages": lambda x, _: torch.relu(x.unfold(1, 4, 2).mean(2) - 0.5),
}


@pytest.mark.parametrize("kind", [*SCRAMBLED, *HONEST])
def test_scrambling_is_told_from_poverty(kind):
    """Most of these stay where they are when one pixel changes by a grey level, and jump when all do."""
    model = SplitModel(Each((SCRAMBLED | HONEST)[kind]), Channel(), nn.Identity())
    assert obfuscation(model, tiny_subject().sets.train).obfuscated is (kind in SCRAMBLED)


def audited(function, channel, folder):
    sets = tiny_subject(test=120).sets
    subject = Subject("own", SplitModel(Each(function), Channel(**channel), nn.Identity()), classifies=False)
    return run_audit(subject, sets, folder, minutes=1.0, suite=[one for one in load_suite() if one.name == "ridge"])


@pytest.mark.parametrize(
    ("noise_std", "quantize_bits", "spread", "lost"),
    [(0, None, 1.0, False), (0.01, None, 1.0, True), (0.01, None, 1e4, False), (0, 8, 1.0, True), (0, 16, 1.0, False),
     (0.01, 16, 1.0, True)],
)  # fmt: skip
def test_noise_or_levels_have_to_be_worth_the_name(noise_std, quantize_bits, spread, lost):
    channel = {"noise_std": noise_std, "quantize_bits": quantize_bits}
    assert bool(what_is_lost(channel, spread)) is lost
    shaped = channel | {"noise_smallest": 0.0}  # a direction without noise holds what it likes
    assert bool(what_is_lost(shaped, spread)) is (quantize_bits == 8)


def test_where_nothing_is_lost_no_failed_attack_is_evidence(tmp_path):
    """Three pixels in one value: linear, smooth, and read by no attack."""
    digits = torch.tensor([1.0, 2.0**-8, 2.0**-16])
    result = audited(lambda x, _: x[:, :15].unfold(1, 3, 3) @ digits, {}, tmp_path).result
    (line,) = [one for one in result["requirements"] if one["name"] == "something is lost on the way"]
    assert not line["met"]
    assert "add noise, or send levels" in line["sentence"]
    assert conclude(result, [parse_threshold("psnr_worst5 > 100")])["verdict"]["outcome"] == "not judged"


def test_an_encoder_that_changes_its_mind_is_refused(tmp_path):
    with pytest.raises(FeatureError, match="answers differently now than when the audit began"):
        audited(lambda x, calls: x if calls > 60 else x.mean(1, keepdim=True).expand(-1, SIZE), {}, tmp_path)


def test_an_encoder_that_fails_on_rare_images_is_refused(tmp_path):
    def rare(x, _):
        return x.masked_fill((torch.sin(1e4 * x.sum(1, keepdim=True)) > 0.95), torch.nan)

    with pytest.raises(FeatureError, match="NaN or infinite features"):
        audited(rare, {}, tmp_path)
