"""`sfumato verify`: whether a bundle is complete, unchanged, signed, and free of random operators."""

from collections.abc import Sequence
from pathlib import Path

from sfumato.cli.console import say, table
from sfumato.cli.parser import CommandParser, save_json
from sfumato.deploy.edge import EdgeClient
from sfumato.deploy.graph import check_graph
from sfumato.deploy.manifest import DECODER, ENCODER, Manifest, file_digest
from sfumato.errors import BundleError

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and verify."""
    parser = CommandParser(
        "verify",
        "Check a bundle: every hash, the signature, that no network in it draws random numbers, and that the encoder "
        "adds the noise that the manifest states.",
        "sfumato verify bundles/first --key keys/release.pem.pub",
    )
    parser.add_argument("bundle", type=str, help="folder made by `sfumato export`")
    parser.add_argument(
        "--key", type=str | None, default=None, help="Ed25519 public key in PEM that must have signed the bundle"
    )
    parser.add_argument("--allow_no_noise", action="store_true", help="accept a bundle that adds no noise")
    parsed = parser.read(words)
    folder = Path(parsed.bundle)
    manifest = Manifest.load(folder, require_signature=parsed.key)
    for name in (ENCODER, DECODER):
        check_graph(manifest.read_file(folder, name), name)
    for copy in sorted(folder.glob("triton/*/*/model.onnx")):
        if file_digest(copy) != manifest.files[DECODER]:
            raise BundleError(f"{copy} is not the bundle's decoder; export the bundle again")
    # The key draws nothing: the client only checks the encoder.
    EdgeClient(folder, device_key=bytes(range(32)), allow_no_noise=parsed.allow_no_noise).close()
    signer = "not checked; require a signature with --key"
    if parsed.key is not None:
        from sfumato.deploy.signing import fingerprint, public_key

        signer = f"by {fingerprint(public_key(parsed.key))}"
    rows = [
        ("model", f"{manifest.name}, version {manifest.version}"),
        ("manifest", manifest.digest()[:16]),
        ("hashes", f"{len(manifest.files)} files unchanged"),
        ("random operators", "none"),
        ("noise", f"{manifest.noise.mode}, standard deviation {manifest.noise.std:g}, added by the encoder"),
        ("signed", signer),
    ]
    table(str(folder), ("checked", "found"), rows)
    say("the bundle is as it was exported" if parsed.key is None else "the bundle is as it was signed")
    save_json(
        parsed.json, {"bundle": str(folder), "digest": manifest.digest(), "signature_checked": parsed.key is not None}
    )
