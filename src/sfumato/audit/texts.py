"""Auditing a model of texts: how many tokens an attacker reads from what leaves the device, and a gate on that."""

import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks import measure_leakage
from sfumato.attacks.identification import MOST_CANDIDATES
from sfumato.attacks.tokens import token_recovery
from sfumato.audit.identity import behaviour_of, target_of
from sfumato.audit.measure import NORMAL_95, WORST_SHARE, pessimistic_ends, share_interval
from sfumato.audit.schema import FORMAT, TEXT_SCHEMA_ID, checked
from sfumato.audit.subject import Subject
from sfumato.audit.thresholds import conclude
from sfumato.audit.verdict import COUNTED, LEAST_IMAGES, NOTHING_LOST, TOO_FEW, answered, headline, what_is_lost
from sfumato.data import ImageSet
from sfumato.errors import DataError, first_line
from sfumato.provenance import evidence
from sfumato.seeds import generator
from sfumato.torch_utils import evaluating

_KNOWN = 0.95  # of the test texts' tokens: what an attacker's texts have to hold for its failure to say anything
_VALUES = 2**25  # of all candidates' features together, which bounds the memory that identification takes
_CHUNK = 64  # texts answered at once
_FORM = (
    "an .npz file with `train` and `test`, whole numbers (N, L), and if you like `labels` of the test texts (N,) and "
    "`padding`, one token"
)


class Texts(NamedTuple):
    """Tokens of the attacker's texts and of unseen ones, (N, L) int64; classes of the unseen ones; the padding."""

    train: Tensor
    test: Tensor
    labels: Tensor | None = None
    padding: int | None = None


class _Inputs:
    """Texts as what measures images takes them: what goes into the encoder; without labels."""

    num_classes = 1

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def float(self, rows: Tensor) -> Tensor:
        """What the encoder takes."""
        return self.ids[rows]


def read_texts(path: Path, subject: Subject, limit: int | None = None) -> Texts:
    """The texts of an .npz file, of which `train` may be cut to `limit`.

    Raises:
        DataError: it is no such file, or its texts are not of the model's length and vocabulary.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # numpy has many types for a file that is none of its own
        raise DataError(f"cannot read texts from {path} ({first_line(error)}); give {_FORM}") from error
    if not {"train", "test"} <= arrays.keys() <= {"train", "test", "labels", "padding"}:
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}; give {_FORM}")
    shape, tokens = subject.input_shape or (), subject.tokens or 0
    if len(shape) != 1:
        raise DataError(f"the model takes tokens of shape {shape} for one text; save it with an example_input (N, L)")
    bounds = {"train": (2, tokens), "test": (2, tokens), "padding": (0, tokens)}
    bounds["labels"] = (1, len(subject.classes or ()))
    for name, values in arrays.items():
        ndim, top = bounds[name]
        if values.dtype.kind not in "iu" or values.ndim != ndim or values.size == 0:
            raise DataError(f"{name} in {path} is {values.dtype} of shape {values.shape}; give {_FORM}")
        if values.min() < 0 or values.max() >= top:
            raise DataError(
                f"{name} in {path} runs from {values.min()} to {values.max()}, and the model knows 0 to {top - 1}; use "
                "the tokenizer and the classes that it was trained with"
            )
        if ndim == 2 and values.shape[1] != shape[0]:
            raise DataError(
                f"the texts of {name} in {path} have {values.shape[1]} tokens, the model takes {shape[0]}; pad or "
                "cut them"
            )
    train, test = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("train", "test"))
    labels = torch.from_numpy(arrays["labels"].astype(np.int64)) if "labels" in arrays else None
    if labels is not None and len(labels) != len(test):
        raise DataError(f"{path} holds {len(labels)} labels for {len(test)} test texts; give one for each")
    return Texts(train[:limit], test, labels, int(arrays["padding"]) if "padding" in arrays else None)


def audit_texts(
    subject: Subject,
    texts: Texts,
    *,
    name: str,
    minutes: float,
    least: int = LEAST_IMAGES,
    seed: int = 0,
    began: float | None = None,
) -> dict[str, Any]:
    """Everything of an audit of texts as plain values, as `schema.TextAudit` describes them.

    The headline is `token_recovery`: what every attacker reaches who can run the encoder. Beside it stand
    identification, the held-out information and what they certify, over as many test texts as fit into memory.

    Args:
        subject: a saved split whose encoder takes tokens.
        texts: of `read_texts`.
        name: of the texts.
        minutes: as the user gave them; nothing here takes long enough to be cut short.
        least: attacker's and test texts below which nothing passes.
        seed: of the noise.
        began: `time.monotonic()` when it started; now, if not said.

    Raises:
        FeatureError: a feature without one row for each position, or NaN.
    """
    began = time.monotonic() if began is None else began
    model, (train, test, labels, padding) = subject.model, texts
    found = token_recovery(model, train, test, padding=padding, seed=seed)
    with evaluating(model):
        feature = model.features(test[:_CHUNK].to(subject.device))
    accuracy = None
    if labels is not None and subject.classifies:
        noise, right = generator(seed, "texts", "accuracy", device=subject.device), 0
        with evaluating(model):
            for ids, truth in zip(test.split(_CHUNK), labels.split(_CHUNK), strict=True):
                right += int((model(ids.to(subject.device), noise).argmax(1).cpu() == truth).sum())
        accuracy = right / len(test)
    most = max(4, min(MOST_CANDIDATES, _VALUES // feature[0].numel()))
    candidates = test[torch.randperm(len(test), generator=generator(seed, "texts", "candidates"))[:most]]
    leakage = measure_leakage(model, cast(ImageSet, _Inputs(candidates)), seed=seed) if len(candidates) >= 4 else None
    counted = test.flatten() if padding is None else test[test != padding]
    rows = set(map(tuple, train.tolist()))
    worst = found.by_text.sort(descending=True).values[: max(1, math.ceil(WORST_SHARE * len(test)))]
    untested = [
        ("a trained reader", "only the nearest token was looked for; a network that reads a position from its "
         "neighbours may recover more, above all behind attention"),
        ("attributes", "no probe of what a text is about ran"),
        *([("accuracy", "the test texts have no labels, or the model no classes")] if accuracy is None else []),
        *([("bounds", "without noise in every direction no bound on information exists")]
          if model.channel.noise.singular else []),
    ]  # fmt: skip
    result: dict[str, Any] = {
        "$schema": TEXT_SCHEMA_ID,
        "format": FORMAT,
        "target": target_of(subject, behaviour_of(subject, test.shape[1:]), feature.shape[1:], gradients=False),
        "data": {
            "name": name,
            "vocabulary": subject.tokens,
            "length": test.shape[1],
            "padding": padding,
            "train_texts": len(train),
            "test_texts": len(test),
            "shared": sum(tuple(row) in rows for row in test.tolist()),
            "known": float(torch.isin(counted, train).double().mean()),
            "labelled": labels is not None,
            "fingerprint": {
                part: hashlib.sha256(ids.numpy().tobytes()).hexdigest()
                for part, ids in (("train", train), ("test", test))
            },
        },
        "accuracy": accuracy,
        "tokens": {
            "recovered": found.recovered,
            "error": found.standard_error,
            "chance": found.chance,
            "worst5": float(worst.mean()),
            "by_position": [None if math.isnan(share) else share for share in found.by_position.tolist()],
        },
        "leakage": None
        if leakage is None
        else leakage.as_dict() | {"sentence": leakage.sentence.replace("images", "texts")},
        "budget": {"minutes": minutes, "seconds": time.monotonic() - began},
        "not_tested": [{"what": what, "why": why} for what, why in untested],
        "failed": [],
        "evidence": evidence(feature.device),
    }
    lost = what_is_lost(result["target"]["channel"], float(feature.flatten(1).std(0).max()))
    return checked(conclude(result | _judged(result, lost, leakage is None or leakage.holds, least), ()))


def _judged(result: Mapping[str, Any], lost: str | None, holds: bool, least: int) -> dict[str, Any]:
    """`requirements`, `metrics`, `pessimistic` and `verdict`, from the figures."""
    data, tokens, accuracy, leaked = result["data"], result["tokens"], result["accuracy"], result["leakage"] or {}
    counts, share, error = (data["train_texts"], data["test_texts"]), tokens["recovered"], tokens["error"]
    known = f"the attacker's texts hold {data['known']:.1%} of the test texts' tokens"
    requirements = answered(
        ("no contradiction", holds, "identification keeps to its certificates",
         "texts are identified more often than a certificate allows, so the attack or the bound has a bug"),
        ("something is lost on the way", lost is not None, lost or "",
         NOTHING_LOST.format("nothing keeps a better attacker from reading every token")),
        ("enough texts", min(counts) >= least, COUNTED.format(*counts, "texts", least),
         TOO_FEW.format(*counts, "texts", least)),
        ("the attacker knows the tokens", data["known"] >= _KNOWN, known,
         f"{known}, and a token that is not in them is never named; give more texts for the attacker"),
    )  # fmt: skip
    # Where all texts give the same share they show no spread, and that of as many independent texts is the safe one.
    end = share_interval(share, counts[1])[1] if error == 0 else min(1.0, share + NORMAL_95 * error)
    read = (
        f"Of the tokens of {counts[1]:,} unseen texts {share:.1%} ± {error:.1%} are recovered (chance "
        f"{tokens['chance']:.1%}), of the worst-served 5 % of the texts {tokens['worst5']:.1%}: that is what every "
        "attacker reaches who can run the encoder, and a better one may read more."
    )
    notes = [f"BROKEN: {one['sentence']}." for one in requirements[:1] if not one["met"]]
    notes += [] if accuracy is None else [f"The cloud recognises {accuracy:.1%} of the test texts."]
    return {
        "requirements": requirements,
        "metrics": {"tokens": share, "information": leaked.get("information"), "accuracy": accuracy},
        "pessimistic": {"tokens": end} | pessimistic_ends(leaked, accuracy, counts[1]),
        "verdict": {"headline": headline(result, "texts", read), "notes": notes},
    }
