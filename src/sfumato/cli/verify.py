"""`sfumato verify`: whether a bundle is complete, unchanged, signed, and holds only what the exporter writes."""

from pathlib import Path

from sfumato.cli.console import say, table
from sfumato.cli.parser import Parsed, save_json
from sfumato.deploy.edge import EdgeClient
from sfumato.deploy.manifest import Manifest


def run(parsed: Parsed) -> None:
    """Verify."""
    folder = Path(parsed.bundle)
    manifest = Manifest.load(folder, require_signature=parsed.key)
    signer = None
    if parsed.key is not None:
        from sfumato.deploy.signing import verify_signature

        signer = verify_signature(folder, manifest.encode(), parsed.key)
    # The key draws nothing: the client only loads both networks, with its own checks.
    EdgeClient(folder, device_key=bytes(range(32)), allow_no_noise=parsed.allow_no_noise).close()
    limits = manifest.feature.range
    rows = [
        ("model", f"{manifest.name}, version {manifest.version}"),
        ("manifest", manifest.digest()[:16]),
        ("files", f"{len(manifest.files)}, digests and sizes agree"),
        ("operators", "only those that the exporter writes"),
        ("feature", "no declared range" if limits is None else f"refused outside [{limits[0]:g}, {limits[1]:g}]"),
        ("noise", f"standard deviation {manifest.noise.std:g}, added by the device"),
        ("signature", "not checked; require one with --key" if signer is None else f"signed by {signer}"),
    ]
    table(str(folder), ("checked", "found"), rows)
    say("digests agree" + ("; who made the bundle was not checked" if signer is None else f", signed by {signer}"))
    save_json(parsed.json, {"bundle": str(folder), "digest": manifest.digest(), "signed_by": signer})
