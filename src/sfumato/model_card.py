"""The page of a model, `README.md`, with the front matter that model hubs read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["model_card"]


def model_card(
    name: str,
    *,
    channel: Mapping[str, Any],
    input_shape: Sequence[int],
    classes: Sequence[str],
    training: Mapping[str, Any],
    audit: Mapping[str, Any] | None,
) -> str:
    """What a split model is, how accurate, and what an audit found, as Markdown behind YAML.

    Args:
        name: of the model.
        channel: `noise_std`, `clip_norm`, `quantize_bits` of what leaves the device.
        input_shape: (C, H, W); of a model of texts (L,).
        classes: names of the outputs; none where they are no classes.
        training: `accuracy`, and `data`, the set that it was measured on, where they are known; other entries may be
            there, and mean anything.
        audit: as `deploy.audited.audit_headline` gives it; None where what leaves the device was not audited.

    >>> card = model_card("first", channel={"noise_std": 0.1}, input_shape=(1, 8, 8), classes=("0", "1"),
    ...                   training={"data": "digits", "accuracy": 0.98}, audit=None)
    >>> print(card.splitlines()[2], "98.00%" in card, "not audited" in card)
    pipeline_tag: image-classification True True
    """
    accuracy, data = training.get("accuracy"), training.get("data")
    accuracy = float(accuracy) if isinstance(accuracy, int | float) else None
    data = data if isinstance(data, str) else None
    task = f"{'image' if len(input_shape) == 3 else 'text'}-classification" if classes else "other"
    front = ["library_name: sfumato", f"pipeline_tag: {task}", "tags: [split-inference, privacy]"]
    measured: list[tuple[str, float]] = [] if accuracy is None else [("accuracy", accuracy)]
    strongest = (audit or {}).get("strongest")
    if strongest is not None:
        kinds = [kind for kind in ("mse", "psnr", "ssim") if kind in strongest]
        measured += [(f"reconstruction {kind}, mean", strongest[kind]["mean"]) for kind in kinds]
        measured += [("tokens recovered", strongest["tokens"])] if "tokens" in strongest else []
    if measured and data:
        front += [
            "model-index:", f"- name: {json.dumps(name)}", "  results:", f"  - task: {{type: {task}}}",
            f"    dataset: {{name: {json.dumps(data)}, type: {json.dumps(data)}}}", "    metrics:",
            *(f"    - {{type: {json.dumps(kind)}, value: {value:.6g}}}" for kind, value in measured),
        ]  # fmt: skip
    sent = [f"Gaussian noise of standard deviation {channel['noise_std']:g}"] if channel["noise_std"] else ["no noise"]
    sent += [f"clipped to norm {channel['clip_norm']:g}"] if channel.get("clip_norm") else []
    sent += [f"{channel['quantize_bits']} bits for each value"] if channel.get("quantize_bits") else []
    answer = f"a server decodes one of {len(classes)} classes" if classes else "a server computes the answer"
    lines = [
        f"# {name}", "",
        f"A split model: the device encodes an input ({' x '.join(map(str, input_shape))}), {answer}. What leaves the "
        f"device: the feature, {', '.join(sent)}.",
    ]  # fmt: skip
    lines += (
        [] if accuracy is None else ["", f"Accuracy on test images{f' of {data}' if data else ''}: {accuracy:.2%}."]
    )
    lines += ["", "## Audit", ""]
    if audit is None:
        lines += ["What leaves the device was not audited: nothing is known of how well images are reconstructed."]
    else:
        passed = {True: "It passed its conditions. ", False: "It did not pass its conditions. ", None: ""}
        lines += [f"{passed[audit['passed']]}{audit['headline']}", "", *(f"- {note}" for note in audit["notes"])]
    return "\n".join(["---", *front, "---", "", *lines, ""])
