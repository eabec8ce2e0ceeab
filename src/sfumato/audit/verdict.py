"""What an audit says first, in words: what is lost on the way, who is recognised, what is seen, what weakens that."""

from collections.abc import Mapping
from typing import Any

__all__ = ["verdict"]

_BLIND = 0.95  # of the mean image's error: an attack above that learned next to nothing from the feature


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """A headline and notes, from the figures alone.

    Returns:
        `headline`, some sentences: test images that are training images; whether anything is lost; identification and
        its certificates; how well images are reconstructed, the worst-served first. `notes`: a list of sentences.
    """
    parts = [_shared(result["data"]), _lossless(result["target"]["channel"]), result["leakage"]["sentence"]]
    return {"headline": " ".join(part for part in [*parts, _seen(result)] if part), "notes": _notes(result)}


def _shared(data: Mapping[str, Any]) -> str:
    if not data["shared"]:
        return ""
    return (
        f"{data['shared']:,} of the {data['test_images']:,} test images are training images too, so figures for unseen "
        "images are not for unseen images."
    )


def _lossless(channel: Mapping[str, Any]) -> str:
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
    for one in result["attacks"]:
        same = one.get("same_images")
        if same and same["gap"] < -2 * same["error"]:
            notes.append(
                f"On the {one['test']['images']} images that it was tried on, {one['name']} reconstructs better: MSE "
                f"{one['test']['mse']['mean']:.4f}, where {same['attack']} has {same['mse']:.4f}."
            )
    if failed := [one["what"] for one in result["failed"]]:
        notes.append(
            f"{len(failed)} pieces of the audit failed ({', '.join(failed)}) and say nothing; reasons are listed below."
        )
    loose = [one["name"] for one in result["attacks"] if one["converged"] is False]
    if loose:
        notes.append(
            f"{len(loose)} of {len(result['attacks'])} attacks had not converged ({', '.join(loose)}): their errors "
            "are no evidence of safety. Give more --minutes."
        )
    if result["accuracy"] is not None:
        notes.append(f"The cloud recognises {_percent(result['accuracy'])} of the test images.")
    gates = [one for one in result["bounds"] if one["gates"]]
    if gates:
        names = ", ".join(one["label"] for one in gates)
        notes.append(f"{len(gates)} bounds hold here, and no attack may beat them: {names}.")
    else:
        notes.append("No bound here limits every attacker's error: a stronger attack than these may reconstruct more.")
    if skipped := result["data"]["skipped"]:
        notes.append(f"{len(skipped)} image files could not be read and were left out; they are listed below.")
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
