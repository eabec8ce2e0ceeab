"""What an audit says first, and what has to be there before it may say "passed"."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sfumato import attacks
from sfumato.attacks import CLOSED_FORM, Observer, invert_released
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.measure import clearly_better, expose, tried_on_all
from sfumato.split import Channel, SplitModel

NOTHING_LOST = (
    "nothing is lost on the way: without noise worth the name, and without levels of at most 12 bits, {}; add noise, "
    "or send levels"
)
COUNTED = "{0:,} attacker and {1:,} test {2}, of at least {3:,} each"
TOO_FEW = COUNTED + ", are too few; give more {2}, or say with --least-images how many are enough"
_BLIND = 0.95  # of the mean image's error: an attack above that learned next to nothing from the feature


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """`headline`, see `headline`, and `notes`, a list of sentences; from the figures alone."""
    return {"headline": headline(result, "images", _seen(result)), "notes": _notes(result)}


def headline(result: Mapping[str, Any], what: str, read: str) -> str:
    """Test images, or texts, that are the attacker's too; whether anything is lost; which was sent, and what is read.

    Identification and its certificates come before what is read of images, and after what is read of texts.
    """
    data = result["data"]
    of, told = f"{data['shared']:,} of the {data[f'test_{what}']:,} test {what}", (result["leakage"] or {})
    shared = {
        "images": f"{of} are training images too, so figures for unseen images are not for unseen images.",
        "texts": f"{of} are the attacker's too.",
    }[what] if data["shared"] else ""  # fmt: skip
    parts = [told.get("sentence", ""), read]
    parts = parts if what == "images" else parts[::-1]
    return " ".join(part for part in (shared, lossless(result["target"]["channel"]), *parts) if part)


def lossless(channel: Mapping[str, Any]) -> str:
    """A sentence where noise is missing from all directions, or from some; else nothing."""
    if channel.get("noise_smallest") == 0 and channel["noise_std"]:
        return (
            "Some directions of the feature carry no noise: what they hold is sent as it is, nothing is certified, and "
            "figures below are about an attacker's effort."
        )
    if channel["noise_std"] or channel["quantize_bits"] is not None:
        return ""
    return (
        "Nothing is lost on the way: the device adds no noise and rounds to no levels, so what leaves it is exactly "
        "what the encoder made, and every figure below is about an attacker's effort alone."
    )


def _seen(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    best = next(one for one in result["attacks"] if one["name"] == result["best"]["test"]["mse"])
    psnr, ssim = best["test"]["psnr"], best["test"]["ssim"]
    seen = (
        f"The worst-served 5 % of unseen images are reconstructed at {metrics['psnr_worst5']:.1f} dB PSNR, the average "
        f"one at {psnr['mean']:.1f} dB (SSIM {ssim['mean']:.2f}) by the strongest attack, {best['name']}."
    )
    ratio = metrics["mse_ratio"]
    if ratio is not None and ratio > _BLIND:
        seen += " On average that is hardly better than answering with the mean image."
    elif ratio is not None:
        seen += f" Its error is {_percent(ratio)} of that of answering with the mean image."
    return seen


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = [f"BROKEN: {one['sentence']}." for one in result["consistency"]["violations"][:1]]
    if notice := (result["target"].get("input") or {}).get("notice"):
        notes.append(f"Look at the input first: {notice}.")
    for one in result["attacks"]:
        if clearly_better(one):
            same = one["same_images"]
            notes.append(
                f"On the {one['test']['images']} images that it was tried on, {one['name']} reconstructs better: MSE "
                f"{one['test']['mse']['mean']:.4f}, where {same['attack']} has {same['mse']:.4f}."
            )
    if failed := [one["what"] for one in result["failed"]]:
        notes.append(
            f"{len(failed)} pieces of the audit failed ({', '.join(failed)}) and say nothing; reasons are listed below."
        )
    if loose := [one["name"] for one in result["attacks"] if one["converged"] is False]:
        notes.append(
            f"{len(loose)} of {len(result['attacks'])} attacks had not converged ({', '.join(loose)}): their errors "
            "are no evidence of safety. Give more --minutes."
        )
    if result["accuracy"] is not None:
        notes.append(f"The cloud recognises {_percent(result['accuracy'])} of the test images.")
    gates = [one["label"] for one in result["bounds"] if one["gates"]]
    notes.append(
        f"{len(gates)} bounds hold here, and no attack may beat them: {', '.join(gates)}."
        if gates
        else "No bound here limits every attacker's error: a stronger attack than these may reconstruct more."
    )
    if skipped := result["data"]["skipped"]:
        notes.append(f"{len(skipped)} image files could not be read and were left out; they are listed below.")
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if not 0 < share < 1e-5 else "less than 0.001 %"


LEAST_IMAGES = 100
"""The attacker's images, and test images, below which no audit passes unless it is told so."""

LEAST_PSNR = 40.0
"""In dB: how well the attacks have to reconstruct images that nothing was done to."""

_JUDGED_ON = 256  # test images
_SEARCHED = 8  # test images, of a search
_FINEST = 4096  # distinguishable values of a coordinate, 12 bits; beyond that an encoder can hide one pixel in another
_LEARNED_FROM = 2000  # images, or twice as many as an image has values
_CROP = 16  # side of the middle of the images that calibration begins with
_SEARCH: dict[str, Any] = {"restarts": 1, "choose_on": 4, "tv": 0.0, "prior": 0.01}


class _Opaque(nn.Identity):
    """The identity without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def calibrate(context: Context, seconds: float) -> dict[str, Any] | None:
    """How well the attacks reconstruct these images from themselves: `psnr` in dB on average, and `by` which attack.

    The channel is the identity: the feature is the image. An attack that fails here fails for want of images, or has a
    bug, and says nothing about any encoder. Where the closed forms fail, as they do with fewer images than an image has
    values, the search image by image has to succeed, without a gradient if the target passes none. They are tried on
    the middle of the images, of twice the side each time, as long as the next one would be done within `seconds`; what
    counts is the largest, `size`. None where there is no time at all.
    """
    end, (_, height, width) = time.monotonic() + seconds, context.sets.test.image_shape
    found: dict[str, Any] | None = None
    side, expected = _CROP, 0.0
    while time.monotonic() + expected < end:
        began, size = time.monotonic(), (min(side, height), min(side, width))
        found = _calibrated(context, *size) | {"size": list(size)}
        if size == (height, width):
            break
        side *= 2
        larger = min(side, height) * min(side, width) / math.prod(size)
        expected = larger**3 * (time.monotonic() - began)  # a linear solution goes with the cube of the values
    return found


def _calibrated(context: Context, height: int, width: int) -> dict[str, Any]:
    channels, *sides = context.sets.test.image_shape
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    most = max(_LEARNED_FROM, 2 * channels * height * width)
    known, test = (
        replace(images, images=images.images[:, :, top : top + height, left : left + width].contiguous())
        for images in (
            shuffled(context.sets.train, most, context.seed, "calibration"),
            context.test.first(_JUDGED_ON).images,
        )
    )
    identity = SplitModel(nn.Identity() if context.gradients else _Opaque(), Channel(), nn.Identity())
    identity = identity.to(context.device)
    z = expose(identity, test, seed=context.seed, device=context.device).z
    best: dict[str, Any] = {"psnr": -math.inf, "by": ""}
    trials: list[tuple[str, dict[str, Any], int]] = [(name, {"draws": 1}, len(test)) for name in CLOSED_FORM]
    for name, settings, count in [*trials, ("optimization", _SEARCH, min(_SEARCHED, len(test)))]:
        if best["psnr"] <= LEAST_PSNR:
            attack = attacks.build(attacks.config_from_dict(name, settings | {"seed": context.seed}))
            attack.fit(Observer(identity, known, device=context.device))
            found = invert_released(attack, test.subset(range(count)), z[:count], device=context.device)
            best = max(best, {"psnr": float(found.psnr.double().mean()), "by": name}, key=lambda one: one["psnr"])
    return best


def requirements(result: Mapping[str, Any], context: Context, least_images: int) -> list[dict[str, Any]]:
    """Each requirement of a pass: `name`, `met`, and a `sentence` that says what there is or what is missing."""
    ran, violations, failed = result["attacks"], result["consistency"]["violations"], result["failed"]
    broken = "; ".join(f"the attack {one['what']} failed, {one['why']}" for one in failed if one["kind"] == "attack")
    names = {one["name"] for one in ran}
    wanted = [f"cloud:{name}" for name in CLOSED_FORM] if context.subject.has_cloud else []
    lacking, unread = ([name for name in group if name not in names] for group in (CLOSED_FORM, wanted))
    trained = [one for one in tried_on_all(ran) if one["history"]]
    rested = [one["name"] for one in trained if one["converged"]]
    why = f"converged ({trained[0]['name']}: {trained[0]['reason']})" if trained else "ran"
    searched = [one["name"] for one in ran if one["attack"] == "optimization"]
    notice = (result["target"].get("input") or {}).get("notice", "")
    counts = len(context.sets.train), len(context.test)
    lost = what_is_lost(result["target"]["channel"], float(context.test.z.flatten(1).std(0).max()))
    obfuscation, calibration = result["obfuscation"], result["calibration"]
    scrambled = (obfuscation or {"sentence": "Whether the feature is scrambled could not be measured."})["sentence"]
    scrambled = scrambled[0].lower() + scrambled[1:].rstrip(".")
    if calibration is None:
        causes = [one["why"] for one in failed if one["what"] == "calibration"]
        cause = causes[0] if causes else "for which there was no time; give more --minutes"
        reached, short = "", f"the attacks were not calibrated on the identity channel, {cause}"
    else:
        channels, *sides = context.sets.test.image_shape
        part = "" if calibration["size"] == sides else "the middle {}×{} of ".format(*calibration["size"])
        reached = f"{calibration['by']} reconstructs {part}these images from themselves at {calibration['psnr']:.0f} dB"
        short = (
            f"{reached}, and some attack has to exceed {LEAST_PSNR:.0f} dB: from {counts[0]:,} images of "
            f"{channels * math.prod(calibration['size']):,} values they cannot reconstruct even that; give more "
            "images, or smaller ones (--size)"
        )
    return answered(
        ("no contradiction", not violations,
         "no attack lies below a bound that holds", violations[0]["sentence"] if violations else ""),
        ("no attack failed", not broken, "no attack failed", broken),
        ("the encoder sees the images", not notice, "its features depend on the images", notice),
        ("not obfuscated", obfuscation is not None and not obfuscation["obfuscated"], scrambled, scrambled),
        ("something is lost on the way", lost is not None, lost or "",
         NOTHING_LOST.format("an encoder can hide one pixel in another, where no attack looks")),
        ("closed-form attacks", not lacking, f"{' and '.join(CLOSED_FORM)} ran",
         f"the closed-form attacks {' and '.join(lacking)} did not run; give more --minutes and leave them in"),
        ("attacks on what the cloud computes", not unread,
         f"{' and '.join(wanted)} ran" if wanted else "the target has no decoder to be attacked",
         f"the attacks {' and '.join(unread)} on the cloud's activations did not run; leave them in"),
        ("a converged trained attack", bool(rested),
         f"{', '.join(rested)} converged", f"no trained attack {why}; give more --minutes"),
        ("a search image by image", bool(searched),
         f"{', '.join(searched)} ran", "no search image by image ran; give more --minutes"),
        ("enough images", min(counts) >= least_images, COUNTED.format(*counts, "images", least_images),
         TOO_FEW.format(*counts, "images", least_images)),
        ("calibration on the identity", calibration is not None and calibration["psnr"] > LEAST_PSNR, reached, short),
    )  # fmt: skip


def answered(*table: tuple[str, bool, str, str]) -> list[dict[str, Any]]:
    """`schema.Requirement`s from name, whether it is met, and what is said where it is and where it is not."""
    return [{"name": name, "met": met, "sentence": there if met else gone} for name, met, there, gone in table]


def what_is_lost(channel: Mapping[str, Any], spread: float) -> str | None:
    """What keeps a value from holding more than a pixel and a half: noise in every direction, or levels; None where
    neither does.
    """
    smallest, bits = channel.get("noise_smallest"), channel["quantize_bits"]
    noise = channel["noise_std"] if smallest is None else smallest
    if noise and spread <= _FINEST * noise:
        return f"the noise is at least 1/{_FINEST:,} of every value's spread"
    return None if bits is None or 2**bits > _FINEST else f"{2**bits} levels for each value"
