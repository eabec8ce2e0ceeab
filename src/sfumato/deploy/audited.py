"""What an audit says about a run, shortened for the manifest of the bundle; only if it audited these very weights."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.deploy.manifest import AuditedChannel
from sfumato.errors import CheckpointError, ConfigError

__all__ = ["audit_headline"]

_FORMAT = 1  # of audit.json
_KINDS, _SPREADS = ("mse", "psnr", "ssim"), ("mean", "worst5")


def audit_headline(run: Path, weights: str, given: Path | None, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """The headline of a run's audit, or None where there is none of these weights.

    Without a path it is looked for in the run's folder, its `audit` folder, and beside it in `audit-NAME`, where
    `sfumato audit` writes. An audit of other weights is passed over, and `tell` hears of it.

    Args:
        run: folder of the run.
        weights: digest of its weights, as the audit names its target's.
        given: an `audit.json`, or the folder that holds it.
        tell: hears why an audit that was found is not taken.

    Returns:
        `sha256` of audit.json; `target`, the digest of the audited weights; `channel`, what was audited; `headline` and
        `notes` of the verdict; `strongest`, the attack with the smallest error on unseen images, with its figures;
        `thresholds` as judged, and `passed`: whether none of them holds, None where there were none; `minutes`,
        `sfumato` and `commit` of the audit.

    Raises:
        ConfigError: the given audit does not exist, or is of other weights.
        CheckpointError: it is damaged.
    """
    name = run.resolve().name
    folders = (run, run / "audit", run.resolve().parent / f"audit-{name}")
    for path in [folder / "audit.json" for folder in folders] if given is None else [_file(given)]:
        if not path.is_file():
            continue
        data = path.read_bytes()
        try:
            value = json.loads(data)
            audited = str(value["target"]["digest"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        if audited == weights:
            return {"sha256": hashlib.sha256(data).hexdigest(), "target": audited, **_short(value, path)}
        reason = f"{path} is an audit of other weights than those of {run}"
        if given is not None:
            raise ConfigError(f"{reason}; audit this run (`sfumato audit {run}`), or leave --audit out")
        tell(f"{reason}, and was left out; audit the run again (`sfumato audit {run}`)")
    return None


def _file(given: Path) -> Path:
    path = given / "audit.json" if given.is_dir() else given
    if not path.is_file():
        raise ConfigError(f"there is no audit {given}; give the audit.json that `sfumato audit` wrote")
    return path


def _short(value: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        if value["format"] != _FORMAT:
            raise ValueError(f"its format is {value['format']}, not {_FORMAT}")
        name, channel = value["best"]["test"]["mse"], value["target"]["channel"]
        (attack,) = [one for one in value["attacks"] if one["name"] == name]
        judged = [
            {key: one[key] for key in ("expression", "metric", "value", "limit", "holds")}
            for one in value["thresholds"]
        ]
        return {
            "channel": {name: channel[name] for name in AuditedChannel.__struct_fields__ if name in channel},
            "headline": value["verdict"]["headline"],
            "notes": value["verdict"]["notes"],
            "strongest": {
                "attack": name,
                "converged": attack["converged"],
                "images": attack["test"]["images"],
                **{kind: {spread: attack["test"][kind][spread] for spread in _SPREADS} for kind in _KINDS},
            },
            "unconverged": sum(one["converged"] is False for one in value["attacks"]),
            "thresholds": judged,
            "passed": None if not judged else all(one["holds"] is False for one in judged),
            "minutes": value["budget"]["minutes"],
            "sfumato": value["evidence"]["sfumato"],
            "commit": value["evidence"]["commit"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
    return CheckpointError(f"{path} is damaged ({reason}); audit the run again")
