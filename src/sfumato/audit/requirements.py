"""What has to be there before an audit may say "passed": an attack that is missing or blind is no safety."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sfumato import attacks
from sfumato.attacks import CLOSED_FORM, Observer, invert_released
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.measure import expose
from sfumato.audit.subject import Subject, placed
from sfumato.split import Channel, SplitModel

__all__ = ["LEAST_IMAGES", "LEAST_PSNR", "calibrate", "requirements"]

LEAST_IMAGES = 100
"""The attacker's images, and test images, below which no audit passes unless it is told so."""

LEAST_PSNR = 40.0
"""In dB: how well the closed-form attacks have to reconstruct images that nothing was done to."""

_SEARCHES = ("optimization", "latent")
_JUDGED_ON = 256  # test images
_LEARNED_FROM = 2000  # images, or twice as many as an image has values


def calibrate(context: Context) -> float:
    """The mean PSNR in dB at which the closed-form attacks reconstruct these images from themselves.

    The channel is the identity: the feature is the image. An attack that fails here fails for want of images, or has a
    bug, and says nothing about any encoder.
    """
    train, test = context.sets.train, context.test.first(_JUDGED_ON).images
    plain = placed(Subject("identity", SplitModel(nn.Identity(), Channel(), nn.Identity()))).model.to(context.device)
    size = math.prod(test.image_shape)
    known = shuffled(train, max(_LEARNED_FROM, 2 * size), context.seed, "calibration")
    z = expose(plain, test, seed=context.seed, device=context.device).z
    best = -math.inf
    for name in CLOSED_FORM:
        if best <= LEAST_PSNR:
            attack = attacks.build(attacks.config_from_dict(name, {"draws": 1, "seed": context.seed}))
            attack.fit(Observer(plain, known, device=context.device))
            found = invert_released(attack, test, z, device=context.device)
            best = max(best, float(found.psnr.double().mean()))
    return best


def requirements(result: Mapping[str, Any], context: Context, least_images: int) -> list[dict[str, Any]]:
    """Each requirement of a pass: `name`, `met`, and a `sentence` that says what there is or what is missing.

    Args:
        result: `attacks` with their convergence, `calibration`, `failed` and `consistency`.
        context: what was attacked.
        least_images: of the attacker's, and of test images.
    """
    ran = [one["name"] for one in result["attacks"]]
    kinds = [one["attack"] for one in result["attacks"]]
    broken = [one for one in result["failed"] if one["kind"] == "attack"]
    violations = result["consistency"]["violations"]
    return [
        _line(
            "no contradiction", not violations,
            "no attack lies below a bound that holds", violations[0]["sentence"] if violations else "",
        ),
        _line(
            "no attack failed", not broken,
            "no attack failed", "; ".join(f"the attack {one['what']} failed, {one['why']}" for one in broken),
        ),
        _obfuscation(result["obfuscation"]),
        _closed_forms(ran),
        _cloud(ran, context),
        _trained(result["attacks"]),
        _search(kinds, context),
        _images(context, least_images),
        _calibration(result["calibration"], context),
    ]  # fmt: skip


def _line(name: str, met: bool, there: str, missing: str) -> dict[str, Any]:
    return {"name": name, "met": met, "sentence": there if met else missing}


def _closed_forms(ran: Sequence[str]) -> dict[str, Any]:
    missing = [name for name in CLOSED_FORM if name not in ran]
    words = f"the closed-form attacks {' and '.join(missing)} did not run; give more --minutes and leave them in"
    return _line("closed-form attacks", not missing, f"{' and '.join(CLOSED_FORM)} ran", words)


def _obfuscation(found: Mapping[str, Any] | None) -> dict[str, Any]:
    name = "not obfuscated"
    if found is None:
        return _line(name, False, "", "whether the feature is scrambled could not be measured")
    words = f"one grey level of one pixel moves the feature by {100 * found['moved']:.2g} % of the way to another image"
    missing = f"obfuscated: {words}, so that attacks which learn from examples say nothing about what it holds"
    return _line(name, found["moved"] <= found["threshold"], words, missing)


def _cloud(ran: Sequence[str], context: Context) -> dict[str, Any]:
    name, wanted = "attacks on what the cloud computes", [f"cloud:{one}" for one in CLOSED_FORM]
    if not context.subject.has_cloud:
        return _line(name, True, "there is no decoder, so nothing of the cloud's could be attacked", "")
    missing = [one for one in wanted if one not in ran]
    words = f"the attacks {' and '.join(missing)} on the cloud's activations did not run; leave them in"
    return _line(name, not missing, f"{' and '.join(wanted)} ran", words)


def _trained(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    trained = [one for one in found if one["history"]]
    rested = [one["name"] for one in trained if one["converged"]]
    if trained:
        words = f"no trained attack converged ({trained[0]['name']}: {trained[0]['reason']}); give more --minutes"
    else:
        words = "no trained attack ran; give more --minutes"
    return _line("a converged trained attack", bool(rested), f"{', '.join(rested)} converged", words)


def _search(ran: Sequence[str], context: Context) -> dict[str, Any]:
    there = [name for name in ran if name in _SEARCHES]
    words = "no search image by image ran; give more --minutes"
    if not context.gradients:
        words = (
            "no search image by image could run, because the target passes no gradients; audit it as a PyTorch module"
        )
    return _line("a search image by image", bool(there), f"{', '.join(there)} ran", words)


def _images(context: Context, least: int) -> dict[str, Any]:
    train, test = len(context.sets.train), len(context.test)
    words = f"{train:,} attacker and {test:,} test images, of at least {least:,} each"
    missing = f"{words}, are too few; give more images, or say with --least-images how many are enough"
    return _line("enough images", min(train, test) >= least, words, missing)


def _calibration(psnr: float | None, context: Context) -> dict[str, Any]:
    name = "calibration on the identity"
    if psnr is None:
        return _line(name, False, "", "the attacks could not be calibrated on the identity channel")
    words = f"the closed-form attacks reconstruct these images from themselves at {psnr:.0f} dB"
    size = math.prod(context.sets.test.image_shape)
    missing = (
        f"{words}, and have to exceed {LEAST_PSNR:.0f} dB: from {len(context.sets.train):,} images of {size:,} values "
        "they cannot learn even that; give more images, or smaller ones (--size)"
    )
    return _line(name, psnr > LEAST_PSNR, words, missing)
