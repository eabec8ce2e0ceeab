"""What an audit says about a run, shortened for the bundle's manifest; only if it audited what leaves the device."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sfumato
from sfumato.deploy.manifest import AuditedChannel
from sfumato.errors import CheckpointError, ConfigError
from sfumato.split import Channel

__all__ = ["audit_headline"]

_FORMAT = 2  # of audit.json
_KINDS, _SPREADS = ("mse", "psnr", "ssim"), ("mean", "worst5")


def audit_headline(
    run: Path, weights: str, channel: Channel, bits: int | None, given: Path | None, tell: Callable[[str], None]
) -> dict[str, Any] | None:
    """What `AuditSpec` holds of a run's audit, or None where none was made of what leaves the device.

    Unless it is given (an `audit.json`, or the folder that holds it) it is looked for in the run's folder, its `audit`
    folder, and beside it in `audit-NAME`, where `sfumato audit` writes. An audit of other weights (by their digest), of
    another channel or number of bits on the wire (None for floats), or by another version of the package is passed
    over, and `tell` hears in what it differs.

    Raises:
        ConfigError: the given audit does not exist.
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
        short = _short(value, path)
        if (difference := _difference(value["target"], weights, channel, bits)) is None:
            return {"sha256": hashlib.sha256(data).hexdigest(), "target": audited, **short}
        tell(
            f"{path} is an audit of {difference}, so the bundle says that it was not audited; audit what will leave "
            f"the device (`sfumato audit {run}`), or export what was audited"
        )
    return None


def _difference(target: dict[str, Any], weights: str, channel: Channel, bits: int | None) -> str | None:
    """In what the audited target differs from what will leave the device, in words.

    Levels on top of audited floats are no difference: they are computed from what was audited and say no more.
    """
    if target["digest"] != weights:
        return "other weights than those that are exported"
    if target["versions"]["sfumato"] != sfumato.__version__:
        return f"version {target['versions']['sfumato']} of sfumato, and this is {sfumato.__version__}"
    audited = {"noise_shape": None} | target["channel"]
    now = {name: getattr(channel, name) for name in ("noise_std", "clip_norm", "low", "high")}
    now["transforms"] = [type(one).__name__ for one in channel.transforms]
    now["noise_shape"] = channel.noise.digest
    now["quantize_bits"] = bits if audited["quantize_bits"] is not None else None
    for name, value in now.items():
        if audited[name] != value:
            return f"another wire ({name} {audited[name]}, and {value} will leave the device)"
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
        channel = value["target"]["channel"]
        judged = [
            {key: one[key] for key in ("expression", "metric", "value", "limit", "holds")}
            for one in value["thresholds"]
        ]
        return {
            "channel": {
                name: channel[name] for name in AuditedChannel.__struct_fields__ if channel.get(name) is not None
            },
            "headline": value["verdict"]["headline"],
            "notes": value["verdict"]["notes"],
            "strongest": _strongest(value),
            "unconverged": sum(one["converged"] is False for one in value.get("attacks", ())),
            "thresholds": judged,
            "passed": None if not judged else value["verdict"]["outcome"] == "passed",
            "minutes": value["budget"]["minutes"],
            "sfumato": value["evidence"]["sfumato"],
            "commit": value["evidence"]["commit"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _strongest(value: dict[str, Any]) -> dict[str, Any]:
    """The strongest attack and what it found, of images or of texts."""
    if "tokens" in value:
        found = value["tokens"]
        return {"attack": "nearest token", "texts": value["data"]["test_texts"], "tokens": found["recovered"],
                "chance": found["chance"]}  # fmt: skip
    name = value["best"]["test"]["mse"]
    (attack,) = [one for one in value["attacks"] if one["name"] == name]
    return {
        "attack": name,
        "converged": attack["converged"],
        "images": attack["test"]["images"],
        **{kind: {spread: attack["test"][kind][spread] for spread in _SPREADS} for kind in _KINDS},
    }


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
    return CheckpointError(f"{path} is damaged ({reason}); audit the run again")
