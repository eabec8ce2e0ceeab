"""From the figures of the pieces to `audit.json`: what was found, what is provable, what was not tested."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from sfumato.attacks import Leakage, Reconstruction, judged, mean_image_error
from sfumato.attacks import strongest as strongest_attack
from sfumato.audit.bounds import check_consistency
from sfumato.audit.context import Context
from sfumato.audit.identity import target_of
from sfumato.audit.images import count_shared
from sfumato.audit.inputs import notice_scale
from sfumato.audit.measure import (
    WORST_SHARE,
    counted,
    pessimistic_ends,
    share_interval,
    strongest,
    summary,
)
from sfumato.audit.schema import FORMAT, SCHEMA_ID, Untested, checked
from sfumato.audit.suite import Piece
from sfumato.audit.thresholds import conclude
from sfumato.audit.verdict import requirements, verdict
from sfumato.errors import CheckpointError
from sfumato.provenance import evidence


def result_of(
    context: Context,
    pieces: Sequence[Piece],
    untested: Sequence[Untested],
    *,
    behaviour: str,
    accuracy: float | None,
    budget: dict[str, float],
    least_images: int,
) -> tuple[dict[str, Any], dict[str, Reconstruction]]:
    """Everything of an audit as plain values, as `schema.Audit` describes them, and the reconstructed test images."""
    folder, sets = context.folder, context.sets
    by_kind = {
        kind: [folder.finished(piece.name) or {} for piece in pieces if piece.kind == kind]
        for kind in ("attack", "queries", "knowledge", "probe")
    }
    reconstructed = {
        one["name"]: Reconstruction.from_tensors("test", folder.tensors(one["name"])) for one in by_kind["attack"]
    }
    reference = {
        "train": mean_image_error(sets.train, context.train.images),
        "test": mean_image_error(sets.train, context.test.images),
    }
    attacks = _judged(by_kind["attack"], reference["test"])
    bounds = (folder.finished("bounds") or {"bounds": []})["bounds"]
    untested = [*untested, *_always_untested(context, bounds, by_kind["probe"], accuracy)]
    broken = set(folder.failed) | ({"van Trees, dFIL"} if "bounds" in folder.failed else set())
    leakage = Leakage(**(folder.finished("leakage") or {}))
    best = _best(attacks, reconstructed)
    strongest_of_all = reconstructed[best["test"]["mse"]]
    for one in attacks:
        if len(few := reconstructed[one["name"]]) < len(strongest_of_all):
            one["same_images"] = _on_the_same_images(few, strongest_of_all, best["test"]["mse"])
    attacks.sort(key=lambda one: one["test"]["mse"]["mean"])
    result: dict[str, Any] = {
        "$schema": SCHEMA_ID,
        "format": FORMAT,
        "target": target_of(context.subject, behaviour, context.test.z.shape[1:], gradients=context.gradients)
        | {"input": _input(context)},
        "data": _data(context),
        "accuracy": accuracy,
        "budget": budget,
        "reference": reference,
        "worst_share": WORST_SHARE,
        "calibration": folder.finished("calibration"),
        "obfuscation": folder.finished("obfuscation"),
        "attacks": attacks,
        "best": best,
        "queries": by_kind["queries"],
        "knowledge": by_kind["knowledge"],
        "probes": [probe for one in by_kind["probe"] for probe in one["probes"]],
        "leakage": leakage.as_dict() | {"sentence": leakage.sentence},
        "bounds": bounds,
        "consistency": check_consistency(attacks, bounds, leakage),
        "not_tested": [msgspec.structs.asdict(one) for one in untested if one.what not in broken],
        "failed": list(folder.failed.values()),
        "evidence": evidence(context.device),
    }
    result["requirements"] = requirements(result, context, least_images)
    result["metrics"], result["pessimistic"] = _metrics(result)
    result["verdict"] = verdict(result)
    return checked(conclude(result, ())), reconstructed


def _judged(attacks: Sequence[dict[str, Any]], trivial: float) -> list[dict[str, Any]]:
    """The attacks with today's verdict on their histories, whenever they ran."""
    verdicts = judged(
        {
            one["name"]: {
                **one,
                "test": {"mse": one["test"]["mse"]["mean"]},
                "history": [line["held_out_mse"] for line in one["history"]],
                "trivial_mse": one.get("trivial_mse") or trivial,
            }
            for one in attacks
        }
    )
    found = []
    for one in attacks:
        kept = {name: value for name, value in one.items() if name != "trivial_mse"} | verdicts[one["name"]]._asdict()
        done, wanted = len(one["history"]), one["settings"].get("epochs", 0)
        if 0 < done < wanted:  # it did not come to rest, however calm its last epochs look
            reason = f"its time was over after {done} of {wanted} epochs; give more --minutes"
            kept |= {"converged": False, "reason": reason}
        found.append(kept)
    return found


def _on_the_same_images(few: Reconstruction, others: Reconstruction, name: str) -> dict[str, Any]:
    """Beside an attack that was tried on some images, what the strongest of the others made of the same ones."""
    same = others.mse.double()[: len(few)]
    gap = few.mse.double() - same
    error = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0
    return {"attack": name, "mse": float(same.mean()), "gap": float(gap.mean()), "error": error}


def _input(context: Context) -> dict[str, Any] | None:
    edge = context.subject.described
    if edge is None:
        return None
    notice = notice_scale(edge, context.test.images.float(torch.arange(min(16, len(context.test)))).to(context.device))
    return edge.as_dict() | {"sentence": edge.sentence(), "notice": notice}


def _data(context: Context) -> dict[str, Any]:
    sets = context.sets
    return {
        "name": sets.name,
        "image_shape": list(sets.test.image_shape),
        "train_images": len(sets.train),
        "test_images": len(sets.test),
        "shared": count_shared(sets),
        "reconstructed": {"train": len(context.train), "test": len(context.test)},
        "labelled": sets.labelled,
        "skipped": [one._asdict() for one in sets.skipped],
        "caveat": sets.caveat,
        "fingerprint": {"train": sets.train.fingerprint(), "test": sets.test.fingerprint()},
    }


def _best(attacks: Sequence[dict[str, Any]], reconstructed: Mapping[str, Reconstruction]) -> dict[str, Any]:
    """The strongest attack of each measure, and the best attacker for each image."""
    every = counted(attacks)
    best: dict[str, Any] = {
        part: {
            "mse": strongest_attack({attack["name"]: attack[part]["mse"]["mean"] for attack in every}),
            "psnr": max(every, key=lambda attack: attack[part]["psnr"]["mean"])["name"],
            "ssim": max(every, key=lambda attack: attack[part]["ssim"]["mean"])["name"],
        }
        for part in ("train", "test")
    }
    most = max(len(one.mse) for one in reconstructed.values())
    full = {name: one for name, one in reconstructed.items() if len(one.mse) == most}
    any_one, which = strongest(list(full.values()))
    counts = which.bincount(minlength=len(full)).tolist()
    best["per_image"] = {"summary": summary(any_one), "counts": dict(zip(full, counts, strict=True))}
    return best


def _always_untested(
    context: Context, bounds: Sequence[dict[str, Any]], probes: Sequence[Any], accuracy: float | None
) -> list[Untested]:
    """What no run of this suite covers, or what this subject does not allow."""
    found = []
    if not probes:
        found.append(Untested("attributes", "no probe ran"))
    if late := [name for one in probes for name in one.get("left", ())]:
        found.append(Untested("attributes", f"the time was over before {', '.join(late)}", left_out=True))
    if not context.sets.labelled:
        found.append(Untested("accuracy", "the images have no labels"))
    elif accuracy is None:
        found.append(Untested("accuracy", "the target has no decoder"))
    if context.subject.model.channel.noise.singular:
        found.append(Untested("bounds", "without noise in every direction no bound on information or error exists"))
    elif not any(one["name"] == "van_trees" for one in bounds):
        found.append(Untested("van Trees, dFIL", "the target passes no gradients, so there is no Jacobian"))
    return found


def _metrics(result: Mapping[str, Any]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """What thresholds may name, see `thresholds.METRICS`, and the ends of their 95 % intervals that leak more."""
    attacks = counted(result["attacks"])
    whole = {name: result["best"]["per_image"]["summary"][name] for name in ("mse", "psnr", "ssim")}
    spreads: dict[str, tuple[Sequence[Mapping[str, Any]], str]] = {
        "psnr_any_worst5": ([whole["psnr"]], "worst5"),
        "ssim_any_worst5": ([whole["ssim"]], "worst5"),
        "mse_any_mean": ([whole["mse"]], "mean"),
        "mse_mean_train": ([one["train"]["mse"] for one in attacks], "mean"),
        "psnr_worst5_train": ([one["train"]["psnr"] for one in attacks], "worst5"),
        "ssim_worst5_train": ([one["train"]["ssim"] for one in attacks], "worst5"),
        "mse_mean_repeated": ([point["mse"] for one in result["queries"] for point in one["points"]], "mean"),
    } | {
        f"{kind}_{spread}": ([one["test"][kind] for one in attacks], spread)
        for kind in whole
        for spread in ("mean", "worst5", "worst")
    }
    values: dict[str, float | None] = {}
    ends: dict[str, float | None] = {}
    for name, (parts, key) in spreads.items():
        pick = min if name.startswith("mse") else max
        values[name] = pick(one[key] for one in parts) if parts else None
        ends[name] = pick(one["pessimistic"][key] for one in parts) if parts else None
    reference, leakage = result["reference"]["test"], result["leakage"]
    for found in (values, ends):
        smallest = found["mse_mean"]
        found["mse_ratio"] = smallest / reference if smallest is not None and reference > 0 else None
    alike = {
        "identified_at_most": min(1.0, *(leakage[one] or 1.0 for one in ("identified_at_most", "clipped_at_most"))),
        "unconverged": float(sum(one["converged"] is False for one in result["attacks"])),
        "left_out": float(sum(one["left_out"] for one in result["not_tested"]) + len(result["failed"])),
    }
    values |= {name: leakage[name] for name in ("identified", "information")} | {"accuracy": result["accuracy"]} | alike
    ends |= {"identified": share_interval(leakage["identified"], leakage["candidates"])[1]} | alike
    return values, ends | pessimistic_ends(leakage, result["accuracy"], result["data"]["test_images"])


def is_audit(path: Path) -> bool:
    """Whether `path` is the folder of a finished audit."""
    return (path / "audit.json").is_file()


def read_audit(path: Path) -> dict[str, Any]:
    """The `audit.json` of a finished audit.

    Raises:
        CheckpointError: it is damaged or of another format.
    """
    try:
        value = json.loads((path / "audit.json").read_text(encoding="utf-8"))
        found = value["format"]
        if found != FORMAT:
            raise CheckpointError(f"{path} holds an audit of format {found}; audit the target again")
        return checked(value)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'audit.json'} is damaged ({error}); audit the target again") from error
