"""What an audit found, in the words of the standards that a privacy officer answers to; facts, and no legal promise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.files import write_json, write_text

_DISCLAIMER = (
    "These are measurements on the images that were given, by the attackers that are named. Whether data are personal, "
    "anonymous or lawfully processed is a legal question that they inform and do not answer."
)


def evidence_of(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Per standard: `standard` with its date, `clause`, what it `asks` for, and the `finding`.

    Args:
        result: as in `audit.json`.
    """
    metrics, leakage, data = result["metrics"], result["leakage"], result["data"]
    best, sentence = result["best"]["test"]["mse"], result["verdict"]["sentence"]
    average = f"on average {metrics['psnr_mean']:.1f} dB PSNR, for the worst-served 5 % {metrics['psnr_worst5']:.1f} dB"
    maximum = f"for the worst-served image {metrics['psnr_worst']:.1f} dB"
    knowledge = (
        "the whole model, every setting of the defence, "
        f"{data['train_images']:,} images of the training set, and what left the device; neither the noise that was "
        "drawn nor the unseen images"
    )
    attacks = ", ".join(one["name"] for one in result["attacks"])
    probes = "; ".join(
        f"{one['label']}: right in {one['accuracy']:.0%}, by chance {one['chance']:.0%}" for one in result["probes"]
    )
    rows = (
        (
            "OWASP AI Testing Guide, version 1 (November 2025)", "AITG-MOD-05, Testing for Inversion Attacks",
            "whether sensitive data can be reconstructed from outputs, gradients or intermediate layers (here: what "
            "leaves the device), and whether privacy measures prevent it",
            f"Attacks {attacks}; the strongest, {best}, reconstructs unseen images {average}. {sentence}",
        ),
        (
            "OWASP Artificial Intelligence Security Verification Standard 1.0 (June 2026)",
            "C11.2, Membership-Inference and Model-Inversion Mitigation",
            "that private training data and sensitive attributes cannot be reconstructed from what a model gives out",
            probes or "No attribute was probed.",
        ),
        (
            "ISO/IEC 27559:2022", "7.3.2, maximum or average risk",
            "which risk was measured: of the average or of the most exposed person",
            f"Both: {average}, {maximum}; {leakage['sentence']}",
        ),
        (
            "ISO/IEC 27559:2022", "8.2.3, adversarial testing",
            "a test by a motivated intruder, with the knowledge and the means that it had",
            f"The attacker had {knowledge}, and {result['budget']['minutes']:g} minutes. Not tested: "
            + "; ".join(f"{one['what']} ({one['why']})" for one in result["not_tested"]) + ".",
        ),
        (
            "NIST AI 100-2 E2025 (24 March 2025)", "privacy attacks: data reconstruction, property inference",
            "the attack in the terms of the taxonomy",
            "Data reconstruction and property inference at deployment, with white-box knowledge and the training data; "
            "of a user's input, where the taxonomy speaks of training data. Membership inference and model extraction "
            "are not part of this audit.",
        ),
        (
            "GDPR, recital 26; CJEU C-413/23 P, EDPS v SRB (4 September 2025)", "means reasonably likely to be used",
            "by whose means somebody could be identified: pseudonymised data need not be personal data for every "
            "recipient (decided on Regulation (EU) 2018/1725, whose definitions are those of the GDPR)",
            f"For a recipient that has {knowledge}: {leakage['sentence']} A recipient with less can do no more.",
        ),
    )  # fmt: skip
    return [dict(zip(("standard", "clause", "asks", "finding"), row, strict=True)) for row in rows]


def write_evidence(folder: Path, result: Mapping[str, Any]) -> None:
    """`evidence.json` and `evidence.md`, with a paragraph for a data-protection impact assessment.

    Raises:
        StorageError: a file could not be written.
    """
    rows, target = evidence_of(result), result["target"]
    write_json(folder / "evidence.json", {"target": target["name"], "note": _DISCLAIMER, "evidence": rows})
    lines = [f"# Evidence: audit of {target['name']}", "", _DISCLAIMER, "", result["verdict"]["sentence"], ""]
    for row in rows:
        lines += [f"## {row['standard']}: {row['clause']}", "", f"Asks for: {row['asks']}.", "", row["finding"], ""]
    lines += [
        "## A paragraph for an impact assessment", "",
        f"What leaves the device was attacked on {result['data']['test_images']:,} images that the attacker had not "
        f"seen. {result['verdict']['headline']} The figures hold for images like these and such attackers.", "",
        *([f"Input: {target['input']['sentence']}.", ""] if target.get("input") else []),
        f"Model {target['digest']}, behaviour {target['behaviour']}, sfumato {target['versions']['sfumato']}, PyTorch "
        f"{target['versions']['torch']}.", "",
    ]  # fmt: skip
    write_text(folder / "evidence.md", "\n".join(lines))
