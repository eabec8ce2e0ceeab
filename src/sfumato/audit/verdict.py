"""What an audit says first: how well images were redrawn, and what weakens that statement."""

from collections.abc import Mapping
from typing import Any

__all__ = ["verdict"]

_BLIND = 0.95  # of the mean image's error: an attack above that learned next to nothing from the feature


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """A headline and notes, from the figures alone.

    Returns:
        `headline`, two or three sentences, and `notes`, a list of sentences.
    """
    metrics = result["metrics"]
    best = next(one for one in result["attacks"] if one["name"] == result["best"]["test"]["mse"])
    ratio = metrics["mse_ratio"]
    psnr, ssim = best["test"]["psnr"], best["test"]["ssim"]
    seen = (
        f"The strongest attack, {best['name']}, redraws unseen images at {psnr['mean']:.1f} dB PSNR on average"
        f" (SSIM {ssim['mean']:.2f}), and at {metrics['psnr_worst5']:.1f} dB for the worst-served 5 %."
    )
    if ratio is not None and ratio > _BLIND:
        seen += " On average that is hardly better than answering with the mean image."
    elif ratio is not None:
        seen += f" Its error is {_percent(ratio)} of that of answering with the mean image."
    seen = f"{result['leakage']['sentence']} {seen}"
    notes = []
    if result["law"]["violations"]:
        notes.append("BROKEN: " + result["law"]["violations"][0]["sentence"] + ".")
    for one in result["attacks"]:
        same = one.get("same_images")
        if same and same["gap"] < -2 * same["error"]:
            notes.append(
                f"On the {one['test']['images']} images that it was tried on, {one['name']} redraws better: MSE "
                f"{one['test']['mse']['mean']:.4f}, where {same['attack']} has {same['mse']:.4f}."
            )
    if failed := [one["what"] for one in result.get("failed", ())]:
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
        notes.append("No bound here limits every attacker's error: a stronger attack than these may redraw more.")
    if skipped := result["data"]["skipped"]:
        notes.append(f"{len(skipped)} image files could not be read and were left out; they are listed below.")
    return {"headline": seen, "notes": notes}


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
