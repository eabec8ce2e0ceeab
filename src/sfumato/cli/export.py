"""`sfumato export`: a trained model becomes a bundle for devices and servers."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.cli.parser import CommandParser, add_plugins, add_settings, load_plugins, save_json, settings
from sfumato.errors import ConfigError

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and export."""
    from sfumato.deploy.export import ExportConfig

    parser = CommandParser(
        "export",
        "Write a model's encoder and decoder as ONNX files, with a manifest and what Triton and KServe need, and check "
        "that they compute what PyTorch does.",
        "sfumato export runs/first --out bundles/first --sign keys/release.pem",
    )
    parser.add_argument(
        "run", type=str | None, nargs="?", default=None, help="folder of a finished run, or of save_split"
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="folder of the bundle; an older bundle is replaced"
    )
    parser.add_argument(
        "--name", type=str | None, default=None, help="of the served model; the run folder's by default"
    )
    add_settings(parser, ExportConfig, skip={"name"})
    parser.add_argument("--sign", type=str | None, default=None, metavar="KEY", help="Ed25519 key in PEM that signs it")
    parser.add_argument(
        "--new_key",
        type=str | None,
        default=None,
        metavar="PATH",
        help="make a signing key there, and PATH.pub beside it",
    )
    parser.add_argument(
        "--images", type=int, default=64, help="test images for the comparison with PyTorch; 0 needs no data"
    )
    parser.add_argument("--data_dir", type=str | None, default=None, help="where the data lies now, if it has moved")
    parser.add_argument(
        "--audit",
        type=str | None,
        default=None,
        help="audit.json of this run for the manifest; found by itself where `sfumato audit` wrote it",
    )
    add_plugins(parser)
    parsed = parser.read(words)
    if parsed.new_key is not None:
        _make_key(Path(parsed.new_key))
        if parsed.run is None:
            return
    if parsed.run is None or parsed.out is None:
        raise ConfigError("name a run and a folder: `sfumato export RUN --out BUNDLE`")
    parsed.name = parsed.name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(parsed.run).resolve().name).lstrip("._-")
    load_plugins(parsed)
    _export(parsed, settings(parsed, ExportConfig))


def _make_key(path: Path) -> None:
    from sfumato.cli.console import say
    from sfumato.deploy.signing import fingerprint, new_key, public_keys

    public = new_key(path)
    (key,) = public_keys(public)
    say(f"signing key: {path} (keep it secret); public key: {public}, fingerprint {fingerprint(key)}")


def _export(parsed: Any, config: Any) -> None:
    from sfumato.cli.console import progress_bar, say, table
    from sfumato.deploy.audited import audit_headline
    from sfumato.deploy.export import export_bundle, wire_bits
    from sfumato.deploy.signing import private_key
    from sfumato.training import load_data, load_trained

    key = None if parsed.sign is None else private_key(Path(parsed.sign))
    folder = Path(parsed.run)
    found = load_trained(folder)
    settings_ = found.config
    given = None if parsed.audit is None else Path(parsed.audit)
    channel = found.model.channel
    audit = audit_headline(folder, found.digest, channel, wire_bits(channel, config), given, say)
    images = None
    if parsed.images > 0 and settings_ is not None:
        if parsed.data_dir is not None:
            settings_ = replace(settings_, data_dir=parsed.data_dir)
        with progress_bar(f"read {settings_.data}") as bar:
            test = load_data(settings_, bar.at).test
        images = test.images[: parsed.images].float() / 255
    with progress_bar("export") as bar:
        bar.line(f"export {folder} to ONNX and compare with PyTorch")
        done = export_bundle(
            found.model,
            Path(parsed.out),
            config,
            classes=found.classes,
            image_shape=found.input_shape,
            images=images,
            training=found.provenance,
            audit=audit,
            key=key,
        )
    manifest, parity = done.manifest, done.parity
    size = f"{_bytes_on_the_wire(manifest)} bytes as {manifest.feature.datatype}"
    rows = [
        ("model", f"{manifest.name}, version {manifest.version}"),
        ("feature on the wire", f"{'x'.join(map(str, manifest.feature.shape))}, {size}"),
        ("noise", f"standard deviation {manifest.noise.std:g}, added by the device"),
        ("largest difference from PyTorch, feature", f"{parity.feature:.1e}"),
        ("largest difference from PyTorch, logits", f"{parity.logits:.1e}"),
        ("compared on", f"{parity.images} images, {0 if images is None else len(images)} of them real"),
        ("audit", "none of what leaves the device" if audit is None else audit["headline"]),
        ("signed by", done.signed_by or "nobody"),
    ]
    table(str(done.folder), ("exported", "value"), rows)
    say(f"next: sfumato verify {done.folder}, sfumato serve {done.folder}")
    save_json(
        parsed.json,
        {
            "bundle": str(done.folder),
            "manifest": manifest.as_dict(),
            "digest": manifest.digest(),
            "parity": {"feature": parity.feature, "logits": parity.logits, "images": parity.images},
            "signed_by": done.signed_by,
        },
    )


def _bytes_on_the_wire(manifest: Any) -> int:
    width = {"FP32": 4, "UINT8": 1, "UINT16": 2}[manifest.feature.datatype]
    for side in manifest.feature.shape:
        width *= side
    return width
