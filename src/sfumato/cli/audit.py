"""`sfumato audit`: how well can any split model be inverted, and what is provable?"""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.audit import (
    METRICS,
    ChannelOptions,
    DataOptions,
    Threshold,
    audit_sets,
    conclude,
    is_audit,
    load_target,
    other_images,
    parse_threshold,
    read_audit,
    run_audit,
)
from sfumato.audit.compare import compare
from sfumato.audit.requirements import LEAST_IMAGES
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, add_plugins, load_plugins, save_json
from sfumato.compute import device_of
from sfumato.errors import ConfigError, NotJudgedError
from sfumato.files import write_json
from sfumato.report.audit import write_audit_report
from sfumato.report.audit_evidence import write_evidence
from sfumato.report.comparison import write_comparison_report

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Parse, audit, judge; 1 where a threshold says that the audit fails.

    Raises:
        NotJudgedError: there are thresholds, none holds, and something is missing that a pass needs.
    """
    began = time.monotonic()
    parsed = _parser().read(words)
    load_plugins(parsed)
    thresholds = [parse_threshold(text) for text in parsed.fail_if or []]
    if parsed.minutes <= 0:
        raise ConfigError(f"minutes is {parsed.minutes}; give a positive number")
    targets = list(parsed.targets)
    several = len(targets) > 1
    outs = _folders(targets, parsed.out)
    results = [
        conclude(read_audit(Path(target)), thresholds)
        if is_audit(Path(target))
        else _audit(target, out, parsed, thresholds, began if index == 0 else time.monotonic(), len(targets))
        for index, (target, out) in enumerate(zip(targets, outs, strict=True))
    ]
    if several:
        comparison = compare(results)
        place = Path(parsed.out or "runs/audit-comparison")
        write_json(place / "comparison.json", comparison)
        write_comparison_report(place / "report.html", comparison)
        _show_comparison(comparison)
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


def _parser() -> CommandParser:
    parser = CommandParser(
        "audit",
        "Attack any split model as hard as the time allows, put the bounds beside the attacks, and write a report. "
        "With several targets: one report that compares them. Interrupted, the same command resumes; with more "
        "--minutes it is extended. Exit code 0: passed, or no --fail-if was given; 1: a --fail-if holds; 2: a mistake "
        "in the input; 3: not judged, because something is missing that a pass needs (the report says what), or an "
        "attack lies below a bound that holds.",
        "sfumato audit runs/first --minutes 10 --fail-if 'psnr_worst5 > 20'",
    )
    parser.add_argument(
        "targets",
        nargs="+",
        type=str,
        metavar="TARGET",
        help="folder of a run or of save_split, encoder.pt2[,decoder.pt2], encoder.pt[,decoder.pt], encoder.onnx, "
        "package.module:function, or the folder of an earlier audit",
    )
    parser.add_argument(
        "--data", type=str | None, default=None, help="a folder of images or a data set's name (a run knows its own)"
    )
    parser.add_argument("--data_dir", type=str | None, default=None, help="where a named data set lies")
    parser.add_argument(
        "--other",
        type=str | None,
        default=None,
        help="a folder or a data set's name: images of another origin, for an attacker who lacks the training set",
    )
    parser.add_argument("--other_dir", type=str | None, default=None, help="where that named data set lies")
    parser.add_argument("--size", type=int | None, default=None, help="side to which images are resized")
    parser.add_argument("--limit", type=int | None, default=None, help="use only that many of the attacker's images")
    parser.add_argument("--out", type=str | None, default=None, help="folder of the audit (default: runs/audit-NAME)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="for everything, over all calls; more minutes than an earlier call had extend its audit",
    )
    parser.add_argument(
        "--fail_if",
        nargs="+",
        type=str,
        default=[],
        metavar="EXPR",
        help="conditions such as 'psnr_worst5 > 20', each of which makes the exit code 1; metrics: "
        + ", ".join(METRICS),
    )
    parser.add_argument(
        "--least_images",
        type=int,
        default=LEAST_IMAGES,
        help="attacker and test images below which no audit passes",
    )
    parser.add_argument("--only", nargs="+", type=str, default=[], metavar="PIECE", help="run only these pieces")
    parser.add_argument(
        "--skip", nargs="+", type=str, default=[], metavar="PIECE", help="leave these pieces out, such as gan or latent"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="open a TARGET that is code (exported programs, TorchScript, saved splits, functions) and was not made by "
        "you on this machine; opening it runs it",
    )
    parser.add_argument("--noise_std", type=float | None, default=None, help="noise on the wire of a bare encoder")
    parser.add_argument(
        "--clip_norm", type=float | None, default=None, help="L2 radius to which its feature is clipped"
    )
    parser.add_argument("--quantize_bits", type=int | None, default=None, help="bits per value on its wire")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="Random seed; the same seed on the same machine and version gives the same result.",
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    add_plugins(parser)
    return parser


def _audit(
    target: str, out: Path, parsed: Any, thresholds: list[Threshold], began: float, among: int
) -> dict[str, Any]:
    """One target, audited and reported."""
    device = device_of(parsed.device)
    channel = ChannelOptions(parsed.noise_std, parsed.clip_norm, parsed.quantize_bits)
    subject = load_target(target, channel, device=device, trust=parsed.trust)
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
            minutes=parsed.minutes / among,
            only=parsed.only,
            skip=parsed.skip,
            least_images=parsed.least_images,
            other=other,
            seed=parsed.seed,
            device=device,
            began=began,
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


def _folders(targets: Sequence[str], out: str | None) -> list[Path]:
    """A folder per target, each of its own name."""
    if len(targets) == 1 and out is not None:
        return [Path(out)]
    names = [re.sub(r"[^\w.-]+", "-", Path(target.split(",")[0]).name).strip("-") or "target" for target in targets]
    base = Path(out) if out is not None else Path("runs")
    found = []
    for index, name in enumerate(names):
        again = f"-{index + 1}" if names.count(name) > 1 else ""
        found.append(base / f"{'' if out is not None else 'audit-'}{name}{again}")
    return found


def _show(result: dict[str, Any]) -> None:
    if result["verdict"]["outcome"] == "not judged":
        say(result["verdict"]["sentence"])
    say(result["verdict"]["headline"])
    rows = []
    for attack in result["attacks"]:
        mse, psnr, ssim = (attack["test"][kind] for kind in ("mse", "psnr", "ssim"))
        rows.append(
            (
                attack["name"] + ("" if attack["converged"] is not False else " (not converged)"),
                f"{psnr['worst5']:.2f}",
                f"{psnr['mean']:.2f}",
                f"{ssim['worst5']:.3f}",
                f"{ssim['mean']:.3f}",
                f"{mse['worst5']:.5f}",
                f"{mse['mean']:.5f}",
            )
        )
    rows.append(("answering with the mean image", "", "", "", "", "", f"{result['reference']['test']:.5f}"))
    heads = ("attack on test images", "PSNR, worst 5 %", "mean", "SSIM, worst 5 %", "mean", "MSE, worst 5 %", "mean")
    table(f"{result['target']['name']}: worst is what is reconstructed best", heads, rows)
    for note in result["verdict"]["notes"]:
        say(note)


def _show_comparison(comparison: dict[str, Any]) -> None:
    rows = [
        (
            one["name"],
            "" if one["accuracy"] is None else f"{one['accuracy']:.2%}",
            f"{one['mse_mean']:.5f}",
            f"{one['mse_worst5']:.5f}",
            one["attack"],
            ", ".join(one["dominated_by"]) or "nobody",
        )
        for one in comparison["subjects"]
    ]
    table("who dominates whom", ("target", "accuracy", "MSE", "worst 5 %", "strongest attack", "dominated by"), rows)
    say(comparison["headline"])
