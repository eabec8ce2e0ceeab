"""`sfumato protect`: noise with a shape for a split model that stays as it is."""

import shlex
from pathlib import Path
from typing import Any

from sfumato.audit import DataOptions, audit_sets, load_target
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import Parsed, given, load_plugins, save_json
from sfumato.protect import ProtectConfig, protect
from sfumato.report.protect import protect_sentence, write_protect_report

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
    _show(result)
    folder = shlex.quote(str(out))
    if result["saved"]:
        say(f"next: sfumato audit {folder} --data ..., sfumato export {folder} --out BUNDLE")
    else:
        say(f"ONNX files cannot be recorded with their noise; its numbers are in {out / 'noise.f32'}")
    say(f"Report: {out / 'report.html'}  Figures: {out / 'protect.json'}")
    save_json(parsed.json, result)


def _show(result: dict[str, Any]) -> None:
    rows = [
        (
            f"{line['name']}{' (chosen)' * (line['name'] == result['chosen'])}",
            f"{line['accuracy']:.2%}",
            f"{line['error']:.5f}",
            line["strongest"],
            f"{line['identified']:.1%}",
            "–" if line["information"] is None else f"{line['information']:.1f}",
            "void" if line["singular"] else f"{line['identified_at_most']:.1%}",
        )
        for line in result["shapes"]
    ]
    heads = ("shape of the noise", "accuracy", "attackers' error", "strongest", "identified", "nats", "certificate")
    table(f"{result['target']}: at most {result['lose_at_most']:g} points lost", heads, rows)
    say(protect_sentence(result))
