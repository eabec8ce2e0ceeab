"""From the figures of the pieces to `audit.json`: what was found, what is provable, what was not tested."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.attacks import Leakage
from sfumato.audit.law import check_law
from sfumato.audit.measure import WORST_SHARE, Redrawn, mean_image_error, strongest, summary, tried_on_all
from sfumato.audit.schema import FORMAT, SCHEMA_ID
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece, Untested
from sfumato.audit.verdict import verdict

__all__ = ["assemble"]

_BASELINES = ("ridge", "nearest")
_WORSE = 0.05


def assemble(
    stage: Stage,
    pieces: Sequence[Piece],
    untested: Sequence[Untested],
    *,
    accuracy: float | None,
    minutes: float,
    seconds: float,
    redrawn: Mapping[str, Redrawn],
    evidence: dict[str, Any],
) -> dict[str, Any]:
    """Everything of an audit as plain values, as `schema.json` describes them."""
    found = {piece.name: stage.folder.finished(piece.name) or {} for piece in pieces}
    by_kind = {
        kind: [found[piece.name] for piece in pieces if piece.kind == kind]
        for kind in ("attack", "queries", "knowledge", "probe")
    }
    attacks = [_against_baselines(one, by_kind["attack"]) for one in by_kind["attack"]]
    floors = (stage.folder.finished("bounds") or {})["bounds"]
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
        "reference": {
            "train": mean_image_error(stage.sets.train, stage.train.images),
            "test": mean_image_error(stage.sets.train, stage.test.images),
        },
        "worst_share": WORST_SHARE,
        "attacks": attacks,
        "best": best,
        "queries": by_kind["queries"],
        "knowledge": by_kind["knowledge"],
        "probes": [probe for one in by_kind["probe"] for probe in one["probes"]],
        "leakage": leakage.as_dict() | {"sentence": leakage.sentence},
        "bounds": floors,
        "law": check_law(attacks, floors, leakage),
        "not_tested": [vars(one) for one in [*untested, *_always_untested(stage, floors, by_kind["probe"], accuracy)]],
        "thresholds": [],
        "evidence": evidence,
    }
    result["metrics"] = _metrics(result)
    result["verdict"] = verdict(result)
    return result


def _against_baselines(attack: dict[str, Any], every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A trained attack that a closed form beats has not converged, whatever its own curve says."""
    simple = [one for one in every if one["attack"] in _BASELINES and one["attack"] != attack["attack"]]
    if not attack["history"] or not simple:
        return attack
    best = min(simple, key=lambda one: one["test"]["mse"]["mean"])
    ratio = attack["test"]["mse"]["mean"] / max(best["test"]["mse"]["mean"], 1e-12)
    if ratio <= 1 + _WORSE:
        return attack
    reason = f"its error is {ratio:.2f} times that of the {best['name']} baseline, which takes seconds"
    return attack | {"converged": False, "reason": reason}


def _on_the_same_images(attack: dict[str, Any], strongest_name: str, redrawn: Mapping[str, Redrawn]) -> dict[str, Any]:
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


def _best(attacks: Sequence[dict[str, Any]], redrawn: Mapping[str, Redrawn]) -> dict[str, Any]:
    """The strongest attack of each measure, and the best attacker for each image."""
    every = tried_on_all(attacks)
    best: dict[str, Any] = {
        part: {
            "mse": min(every, key=lambda attack: attack[part]["mse"]["mean"])["name"],
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
