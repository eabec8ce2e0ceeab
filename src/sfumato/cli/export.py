"""`sfumato export`: a trained model becomes a bundle for devices and servers."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import Parsed, given, load_plugins, save_json
from sfumato.deploy.signing import fingerprint, new_key, private_key, public_keys
from sfumato.errors import ConfigError


def run(parsed: Parsed) -> None:
    """Export."""
    if parsed.new_key is not None:
        _make_key(Path(parsed.new_key))
        if parsed.run is None:
            return
    if parsed.run is None or parsed.out is None:
        raise ConfigError("name a run and a folder: `sfumato export RUN --out BUNDLE`")
    parsed.name = parsed.name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(parsed.run).resolve().name).lstrip("._-")
    load_plugins(parsed)
    _export(parsed)


def _make_key(path: Path) -> None:
    public = new_key(path)
    (key,) = public_keys(public)
    say(f"signing key: {path} (keep it secret); public key: {public}, fingerprint {fingerprint(key)}")


def _export(parsed: Any) -> None:
    # These load torch, which a key, and a mistake in the words, do without.
    from sfumato.audit.target import need_trust
    from sfumato.deploy.audited import audit_headline
    from sfumato.deploy.export import ExportConfig, export_bundle, wire_bits
    from sfumato.split.saved import SPLIT, made_here
    from sfumato.training import load_data, load_trained

    config = ExportConfig(**given(parsed, ExportConfig))
    key = None if parsed.sign is None else private_key(Path(parsed.sign))
    folder = Path(parsed.run)
    if (folder / SPLIT).exists():
        need_trust(parsed.run, parsed.trust or made_here(folder))
    found = load_trained(folder)
    settings_ = found.config
    audited = None if parsed.audit is None else Path(parsed.audit)
    channel = found.model.channel
    audit = audit_headline(folder, found.digest, channel, wire_bits(channel, config), audited, say)
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
            tokens=found.tokens,
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
        ("compared on", f"{parity.images} inputs, {0 if images is None else len(images)} of them real"),
        ("audit", "none of what leaves the device" if audit is None else audit["headline"]),
        ("signed by", done.signed_by or "nobody"),
    ]
    table(str(done.folder), ("exported", "value"), rows)
    quoted = shlex.quote(str(done.folder))
    say(f"next: sfumato verify {quoted}, sfumato serve {quoted}")
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
