"""From the figures of the pieces to `audit.json`: what was found, what is provable, what was not tested."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.attacks import CLOSED_FORM, Leakage, Reconstruction, Stored, judge_stored, mean_image_error
from sfumato.attacks import strongest as strongest_attack
from sfumato.audit.law import check_law
from sfumato.audit.measure import WORST_SHARE, strongest, summary, tried_on_all
from sfumato.audit.schema import FORMAT, SCHEMA_ID
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece, Untested
from sfumato.audit.verdict import verdict

__all__ = ["assemble"]


def assemble(
    stage: Stage,
    pieces: Sequence[Piece],
    untested: Sequence[Untested],
    failed: Sequence[dict[str, str]],
    *,
    accuracy: float | None,
    minutes: float,
    seconds: float,
    redrawn: Mapping[str, Reconstruction],
    evidence: dict[str, Any],
) -> dict[str, Any]:
    """Everything of an audit as plain values, as `schema.json` describes them."""
    found = {piece.name: stage.folder.finished(piece.name) or {} for piece in pieces}
    by_kind = {
        kind: [found[piece.name] for piece in pieces if piece.kind == kind]
        for kind in ("attack", "queries", "knowledge", "probe")
    }
    reference = {
        "train": mean_image_error(stage.sets.train, stage.train.images),
        "test": mean_image_error(stage.sets.train, stage.test.images),
    }
    attacks = _judged(by_kind["attack"], reference["test"])
    floors = (stage.folder.finished("bounds") or {"bounds": []})["bounds"]
    untested = [*untested, *_always_untested(stage, floors, by_kind["probe"], accuracy)]
    broken = {one["what"] for one in failed} | {"van Trees, dFIL" for one in failed if one["what"] == "bounds"}
    leakage = Leakage(**(stage.folder.finished("leakage") or {}))
    best = _best(attacks, redrawn)
    attacks = [_on_the_same_images(one, best["test"]["mse"], redrawn) for one in attacks]
    result: dict[str, Any] = {
        "$schema": SCHEMA_ID,
        "format": FORMAT,
        "target": _target(stage),
        "data": _data(stage),
        "accuracy": accuracy,
        "budget": {"minutes": minutes, "seconds": round(seconds, 1)},
        "reference": reference,
        "worst_share": WORST_SHARE,
        "attacks": attacks,
        "best": best,
        "queries": by_kind["queries"],
        "knowledge": by_kind["knowledge"],
        "probes": [probe for one in by_kind["probe"] for probe in one["probes"]],
        "leakage": leakage.as_dict() | {"sentence": leakage.sentence},
        "bounds": floors,
        "law": check_law(attacks, floors, leakage),
        "not_tested": [vars(one) for one in untested if one.what not in broken],
        "failed": list(failed),
        "thresholds": [],
        "evidence": evidence,
    }
    result["metrics"] = _metrics(result)
    result["verdict"] = verdict(result)
    return result


def _judged(attacks: Sequence[dict[str, Any]], trivial: float) -> list[dict[str, Any]]:
    """The attacks with today's verdict on their histories, whenever they ran."""
    verdicts = judge_stored(
        {
            one["name"]: Stored(
                error=one["test"]["mse"]["mean"],
                history=[line["held_out_mse"] for line in one["history"]],
                trivial=one.get("trivial_mse") or trivial,
                converged=one["converged"],
                reason=one["reason"],
                closed_form=one["attack"] in CLOSED_FORM,
            )
            for one in attacks
        }
    )
    kept = [{name: value for name, value in one.items() if name != "trivial_mse"} for one in attacks]
    return [one | verdicts[one["name"]]._asdict() for one in kept]


def _on_the_same_images(
    attack: dict[str, Any], strongest_name: str, redrawn: Mapping[str, Reconstruction]
) -> dict[str, Any]:
    """Beside an attack that was tried on some images, what the strongest of the others made of the same ones."""
    few, others = redrawn[attack["name"]].mse.double(), redrawn[strongest_name].mse.double()
    if len(few) == len(others):
        return attack
    gap = few - others[: len(few)]
    error = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0
    same = {"attack": strongest_name, "mse": float(others[: len(few)].mean()), "gap": float(gap.mean()), "error": error}
    return attack | {"same_images": same}


def _target(stage: Stage) -> dict[str, Any]:
    subject, channel = stage.subject, stage.subject.model.channel
    shape = list(stage.test.z.shape[1:])
    return {
        "name": subject.name,
        "kind": subject.kind,
        "digest": subject.digest,
        "defense": subject.defense,
        "setting": subject.setting,
        "gradients": stage.gradients,
        "feature_shape": shape,
        "feature_values": math.prod(shape),
        "channel": {
            "noise_std": channel.noise_std,
            "clip_norm": channel.clip_norm,
            "quantize_bits": channel.quantize_bits,
            "transforms": [type(one).__name__ for one in channel.transforms],
        },
    }


def _data(stage: Stage) -> dict[str, Any]:
    sets = stage.sets
    return {
        "name": sets.name,
        "image_shape": list(sets.test.image_shape),
        "train_images": len(sets.train),
        "test_images": len(sets.test),
        "redrawn": {"train": len(stage.train), "test": len(stage.test)},
        "labelled": sets.labelled,
        "skipped": [one._asdict() for one in sets.skipped],
        "caveat": sets.caveat,
        "fingerprint": {"train": sets.train.fingerprint(), "test": sets.test.fingerprint()},
    }


def _best(attacks: Sequence[dict[str, Any]], redrawn: Mapping[str, Reconstruction]) -> dict[str, Any]:
    """The strongest attack of each measure, and the best attacker for each image."""
    every = tried_on_all(attacks)
    best: dict[str, Any] = {
        part: {
            "mse": strongest_attack({attack["name"]: attack[part]["mse"]["mean"] for attack in every}),
            "psnr": max(every, key=lambda attack: attack[part]["psnr"]["mean"])["name"],
            "ssim": max(every, key=lambda attack: attack[part]["ssim"]["mean"])["name"],
        }
        for part in ("train", "test")
    }
    most = max(len(one.mse) for one in redrawn.values())
    full = {name: one for name, one in redrawn.items() if len(one.mse) == most}
    any_one, which = strongest(list(full.values()))
    counts = which.bincount(minlength=len(full)).tolist()
    best["per_image"] = {"summary": summary(any_one), "counts": dict(zip(full, counts, strict=True))}
    return best


def _always_untested(
    stage: Stage, floors: Sequence[dict[str, Any]], probes: Sequence[Any], accuracy: float | None
) -> list[Untested]:
    """What no run of this suite covers, or what this subject does not allow."""
    found = []
    if not probes:
        found.append(Untested("attributes", "no probe ran"))
    if not stage.sets.labelled:
        found.append(Untested("accuracy", "the images have no labels"))
    elif accuracy is None:
        found.append(Untested("accuracy", "the target has no decoder"))
    if stage.subject.model.channel.noise_std == 0:
        found.append(Untested("bounds", "without noise on the wire no bound on information or error exists"))
    elif not any(one["name"] == "van_trees" for one in floors):
        found.append(Untested("van Trees, dFIL", "the target passes no gradients, so there is no Jacobian"))
    return found


def _metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """What thresholds may name, see `thresholds.METRICS`."""
    attacks, any_one = tried_on_all(result["attacks"]), result["best"]["per_image"]["summary"]
    metrics: dict[str, float | None] = {}
    for kind in ("mse", "psnr", "ssim"):
        pick = min if kind == "mse" else max
        for spread in ("mean", "worst5", "worst"):
            metrics[f"{kind}_{spread}"] = pick(one["test"][kind][spread] for one in attacks)
    metrics["psnr_any_worst5"] = any_one["psnr"]["worst5"]
    metrics["ssim_any_worst5"] = any_one["ssim"]["worst5"]
    metrics["mse_any_mean"] = any_one["mse"]["mean"]
    metrics["mse_mean_train"] = min(one["train"]["mse"]["mean"] for one in attacks)
    metrics["psnr_worst5_train"] = max(one["train"]["psnr"]["worst5"] for one in attacks)
    metrics["ssim_worst5_train"] = max(one["train"]["ssim"]["worst5"] for one in attacks)
    smallest, reference = metrics["mse_mean"], result["reference"]["test"]
    metrics["mse_ratio"] = smallest / reference if smallest is not None and reference > 0 else None
    repeated = [point["mse"]["mean"] for one in result["queries"] for point in one["points"]]
    metrics["mse_mean_repeated"] = min(repeated) if repeated else None
    leakage = result["leakage"]
    metrics |= {name: leakage[name] for name in ("identified", "information")}
    certificates = [leakage[name] for name in ("identified_at_most", "clipped_at_most")]
    metrics["identified_at_most"] = min(1.0 if one is None else one for one in certificates)
    metrics["accuracy"] = result["accuracy"]
    metrics["unconverged"] = float(sum(one["converged"] is False for one in result["attacks"]))
    return metrics
