"""`sfumato audit`: how well can any split model be inverted, and what is provable?"""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.audit import (
    METRICS,
    TEXT_METRICS,
    ChannelOptions,
    DataOptions,
    Subject,
    Threshold,
    audit_sets,
    audit_texts,
    conclude,
    is_audit,
    load_target,
    other_images,
    parse_threshold,
    read_audit,
    read_description,
    read_texts,
    run_audit,
)
from sfumato.audit.compare import compare
from sfumato.cli.console import progress_bar, say, show, table
from sfumato.cli.parser import Parsed, load_plugins, save_json
from sfumato.compute import device_of
from sfumato.errors import ConfigError, NotJudgedError
from sfumato.files import write_json
from sfumato.report.audit import write_audit_report
from sfumato.report.audit_evidence import write_evidence
from sfumato.report.audit_page import write_text_report
from sfumato.report.comparison import comparison_table, write_comparison_report

__all__ = ["run"]

_IMAGES_ONLY = ("input", "data_dir", "other", "other_dir", "size", "only", "skip")


def run(parsed: Parsed) -> int:
    """Audit, judge; 1 where a threshold says that the audit fails.

    Raises:
        NotJudgedError: there are thresholds, none holds, and something is missing that a pass needs.
    """
    loading = time.monotonic() - parsed.began
    load_plugins(parsed)
    thresholds = [parse_threshold(text) for text in parsed.fail_if or []]
    targets = list(parsed.targets)
    several = len(targets) > 1
    outs = _folders(targets, parsed.out)
    results = [
        conclude(read_audit(Path(target)), thresholds)
        if is_audit(Path(target))
        else _audit(target, out, parsed, thresholds, parsed.began if index == 0 else time.monotonic(), loading)
        for index, (target, out) in enumerate(zip(targets, outs, strict=True))
    ]
    if several:
        comparison = compare(results)
        place = Path(parsed.out or "runs/audit-comparison")
        write_json(place / "comparison.json", comparison)
        write_comparison_report(place / "report.html", comparison)
        show(comparison_table(comparison["subjects"]), "who dominates whom")
        say(comparison["headline"])
        say(f"Report: {place / 'report.html'}")
    save_json(parsed.json, comparison if several else results[0])
    outcomes = {result["target"]["name"]: result["verdict"] for result in results}
    for name, verdict in outcomes.items():
        if verdict["outcome"] in ("failed", "passed"):
            say(f"{name}: {verdict['sentence']}")
    if any(verdict["outcome"] == "failed" for verdict in outcomes.values()):
        return 1
    for name, verdict in outcomes.items():
        if verdict["outcome"] == "not judged":
            raise NotJudgedError(f"{name} is {verdict['sentence'][0].lower()}{verdict['sentence'][1:]}")
    return 0


def _audit(
    target: str, out: Path, parsed: Any, thresholds: list[Threshold], began: float, loading: float
) -> dict[str, Any]:
    """One target, audited and reported; `loading` took what the packages of this command are."""
    device = device_of(parsed.device)
    channel = ChannelOptions(parsed.noise_std, parsed.clip_norm, parsed.quantize_bits)
    given = None if parsed.input is None else read_description(Path(parsed.input))
    subject = load_target(target, channel, device=device, trust=parsed.trust, given=given)
    if subject.tokens is not None:
        return _audit_texts(subject, out, parsed, thresholds, began)
    if texts := [one.metric for one in thresholds if one.metric not in METRICS]:
        raise ConfigError(f"a threshold on {texts[0]} needs a model of texts, and {target} takes images")
    with progress_bar("read images") as bar:
        options = DataOptions(
            parsed.data, parsed.data_dir, parsed.size, parsed.limit, other=parsed.other, other_dir=parsed.other_dir
        )
        sets = audit_sets(subject, options, bar.at)
        other = other_images(options, sets.train, bar.at)
    for skipped in sets.skipped:
        say(f"skipped: {skipped.reason}")
    if any(one.metric == "accuracy" for one in thresholds) and not (subject.classifies and sets.labelled):
        raise ConfigError("a threshold on accuracy needs labelled images and a target with a decoder")
    with progress_bar("audit") as bar:
        audited = run_audit(
            subject,
            sets,
            out,
            minutes=parsed.minutes / len(parsed.targets),
            only=parsed.only or [],
            skip=parsed.skip or [],
            least_images=parsed.least_images,
            other=other,
            seed=parsed.seed,
            device=device,
            began=began,
            # The report takes about as long as loading did, on this machine and in the company that it has now.
            ending=2.0 + 1.5 * loading,
            tell=bar.line,
            progress=lambda done, total: bar.at(round(done), round(total)),
        )
    result = conclude(audited.result, thresholds)
    write_json(out / "audit.json", result)
    write_audit_report(out / "report.html", result, audited.pictures())
    write_evidence(out, result)
    _show(result)
    say(f"Report: {out / 'report.html'}  Figures: {out / 'audit.json'}")
    return result


def _audit_texts(subject: Subject, out: Path, parsed: Any, thresholds: list[Threshold], began: float) -> dict[str, Any]:
    """A model of texts, audited and reported."""
    if given := [name for name in _IMAGES_ONLY if getattr(parsed, name)]:
        option = given[0].replace("_", "-")
        raise ConfigError(f"{subject.name} is a model of texts, and --{option} is for images; leave it out")
    if parsed.data is None:
        raise ConfigError(f"{subject.name} is a model of texts; give them with --data texts.npz, arrays train and test")
    if images := [one.metric for one in thresholds if one.metric not in TEXT_METRICS]:
        raise ConfigError(f"{images[0]} is measured on images, and {subject.name} is a model of texts, which has "
                          f"{', '.join(TEXT_METRICS)}")  # fmt: skip
    texts = read_texts(Path(parsed.data), subject, parsed.limit)
    if any(one.metric == "accuracy" for one in thresholds) and (texts.labels is None or not subject.classifies):
        raise ConfigError("a threshold on accuracy needs `labels` of the test texts and a model of classes")
    with progress_bar("audit") as bar:
        bar.line(f"recover tokens of {len(texts.test):,} texts")
        found = audit_texts(
            subject, texts, name=Path(parsed.data).name, minutes=parsed.minutes, least=parsed.least_images,
            seed=parsed.seed, began=began,
        )  # fmt: skip
    result = conclude(found, thresholds)
    write_json(out / "audit.json", result)
    write_text_report(out / "report.html", result)
    _show(result)
    say(f"Report: {out / 'report.html'}  Figures: {out / 'audit.json'}")
    return result


def _folders(targets: Sequence[str], out: str | None) -> list[Path]:
    """A folder per target, each of its own name."""
    if len(targets) == 1 and out is not None:
        return [Path(out)]
    names = [re.sub(r"[^\w.-]+", "-", Path(target.split(",")[0]).name).strip("-") or "target" for target in targets]
    base = "runs/audit-" if out is None else f"{out}/"
    again = [f"-{index + 1}" if names.count(name) > 1 else "" for index, name in enumerate(names)]
    return [Path(f"{base}{name}{end}") for name, end in zip(names, again, strict=True)]


def _show(result: dict[str, Any]) -> None:
    if result["verdict"]["outcome"] == "not judged":
        say(result["verdict"]["sentence"])
    say(result["verdict"]["headline"])
    if "tokens" in result:
        for note in result["verdict"]["notes"]:
            say(note)
        return
    rows = []
    for attack in result["attacks"]:
        kinds = (("psnr", 2), ("ssim", 3), ("mse", 5))
        cells = [f"{attack['test'][kind][one]:.{digits}f}" for kind, digits in kinds for one in ("worst5", "mean")]
        rows.append([attack["name"] + " (not converged)" * (attack["converged"] is False), *cells])
    rows.append(["answering with the mean image", *[""] * 5, f"{result['reference']['test']:.5f}"])
    heads = ("attack on test images", "PSNR, worst 5 %", "mean", "SSIM, worst 5 %", "mean", "MSE, worst 5 %", "mean")
    table(f"{result['target']['name']}: worst is what is reconstructed best", heads, rows)
    for note in result["verdict"]["notes"]:
        say(note)
