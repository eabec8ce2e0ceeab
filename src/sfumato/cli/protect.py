"""`sfumato protect`: noise with a shape for a split model that stays as it is."""

import shlex
from pathlib import Path

from sfumato.audit import DataOptions, audit_sets, load_target
from sfumato.cli.console import progress_bar, say, show
from sfumato.cli.parser import Parsed, given, load_plugins, save_json
from sfumato.protect import ProtectConfig, protect
from sfumato.report.protect import protect_sentence, protect_table, write_protect_report

__all__ = ["run"]


def run(parsed: Parsed) -> None:
    """Measure, seek, attack, choose, write."""
    load_plugins(parsed)
    config, out = ProtectConfig(**given(parsed, ProtectConfig)), Path(parsed.out)
    subject = load_target(parsed.target, trust=parsed.trust)
    with progress_bar("read images") as bar:
        options = DataOptions(parsed.data, parsed.data_dir, parsed.size, parsed.limit)
        sets = audit_sets(subject, options, bar.at)
    with progress_bar("protect") as bar:
        result = protect(subject, sets, out, config, tell=bar.line)
    write_protect_report(out / "report.html", result)
    show(protect_table(result), f"{result['target']}: at most {result['lose_at_most']:g} points lost")
    say(protect_sentence(result))
    folder = shlex.quote(str(out))
    if result["saved"]:
        say(f"next: sfumato audit {folder} --data ..., sfumato export {folder} --out BUNDLE")
    else:
        say(f"ONNX files cannot be recorded with their noise; its numbers are in {out / 'noise.f32'}")
    say(f"Report: {out / 'report.html'}  Figures: {out / 'protect.json'}")
    save_json(parsed.json, result)
