"""What `audit.json` holds: one description, from which both the reader and the published schema are made.

Errors are per pixel with pixels in [0, 1]; PSNR is in dB, capped at 120; information is in nats. Worst means worst for
the person in the picture: reconstructed best.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

FORMAT = 2
SCHEMA_ID = "https://sfumato.dev/schema/audit-2.json"
"""An identifier, not an address: the schema comes with the package."""

TEXT_SCHEMA_ID = "https://sfumato.dev/schema/text-audit-2.json"
"""The same of an audit of texts."""

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """Entries that nobody knows are refused."""


class ChannelEntry(_Entry):
    """What happens to the feature before it leaves; of noise with a shape, its digest, weakest direction and rank."""

    noise_std: Annotated[float, Meta(ge=0)]
    clip_norm: float | None
    quantize_bits: int | None
    low: float
    high: float
    transforms: list[str]
    noise_shape: str | None = None
    noise_smallest: float | None = None
    noise_rank: Count | None = None


class Input(_Entry):
    """How images are given to the encoder; `notice`: why that may be wrong, empty where nothing is seen."""

    declared: str | None
    layout: Literal["NCHW", "NHWC"]
    type: str
    channels: str | None
    range: list[float]
    mean: list[float]
    std: list[float]
    size: list[int] | None
    sentence: str
    notice: str


class Target(_Entry):
    """What was audited. `weights`, `behaviour` and `versions` say which audit may stand for which model."""

    name: str
    kind: Literal["run", "saved", "exported", "torchscript", "onnx", "function"]
    digest: str
    behaviour: str
    versions: dict[str, str]
    defense: str
    setting: str
    gradients: bool
    feature_shape: list[Count]
    feature_values: Count
    channel: ChannelEntry
    input: Input | None = None


class Data(_Entry):
    """The attacker's images and the test images; `shared`: test images that are training images too, bit for bit."""

    name: str
    image_shape: list[Count]
    train_images: Count
    test_images: Count
    shared: Count
    reconstructed: dict[Literal["train", "test"], Count]
    labelled: bool
    skipped: list[dict[Literal["file", "reason"], str]]
    caveat: str
    fingerprint: dict[Literal["train", "test"], str]


class Spread(_Entry):
    """A measure over images; `pessimistic`: the end of the 95 % interval at which more has leaked."""

    mean: float
    error: Annotated[float, Meta(ge=0)]
    worst5: float
    worst: float
    pessimistic: dict[Literal["mean", "worst5", "worst"], float]


class Figures(_Entry):
    """How well images were reconstructed."""

    images: Annotated[int, Meta(ge=1)]
    mse: Spread
    psnr: Spread
    ssim: Spread


class _Ran(_Entry):
    """An attack, and whether it came to rest."""

    name: str
    attack: str
    converged: bool | None
    reason: str
    held_out_mse: float | None
    seconds: float


class AttackEntry(_Ran):
    """An attack by the strongest attacker.

    `history`: a line per epoch, empty where it does not train in epochs; `same_images`: what `attack`, the strongest of
    all, made of the images that this one was tried on, with the gap between both.
    """

    images: Count
    settings: dict[str, Any]
    history: list[dict[Literal["epoch", "mse", "held_out_mse"], int | float]]
    train: Figures
    test: Figures
    same_images: dict[Literal["attack", "mse", "gap", "error"], str | float] | None = None


class PerImageEntry(_Entry):
    """The best attacker of each image, and how many images each reconstructs best."""

    summary: Figures
    counts: dict[str, Count]


class Best(_Entry):
    """The name of the strongest attack of each measure."""

    train: dict[Literal["mse", "psnr", "ssim"], str]
    test: dict[Literal["mse", "psnr", "ssim"], str]
    per_image: PerImageEntry


class SweepPoint(Figures):
    """One attacker of a sweep; `queries` where it asks for one image more than once."""

    label: str = ""
    known: Count = 0
    queries: int | None = None


class Sweep(_Ran):
    """One attack by attackers who ask more than once, or know less."""

    label: str
    points: Annotated[list[SweepPoint], Meta(min_length=1)]
    note: str


class ProbeEntry(_Entry):
    """What else is read, from the feature or from a reconstruction."""

    name: str
    label: str
    property: str
    source: Literal["feature", "reconstruction"]
    accuracy: Share
    error: float
    chance: Share
    images: Count


class LeakageEntry(_Entry):
    """Which of `candidates` images was sent: identified, and at most."""

    identified: Share
    identified_error: float
    candidates: Count
    queries: Count
    information: float | None
    information_error: float | None
    identified_at_most: Share | None
    clipped_at_most: Share | None
    sentence: str


class Bound(_Entry):
    """What is provable, with its assumption; `gates`: it holds here, so that no attack may beat it."""

    name: str
    label: str
    value: float
    unit: str
    kind: Literal["error", "information", "ratio"]
    assumption: str
    gates: bool
    notes: list[str]
    standard_error: float | None = None
    information: float | None = None
    from_half: float | None = None
    images: int | None = None
    dfil: dict[str, float] | None = None
    per_image: list[float] | None = None


class Violation(_Entry):
    """An attack below a bound that holds: a bug."""

    attack: str
    bound: str
    measured: float
    error: float
    value: float
    sentence: str


class Consistency(_Entry):
    """The bounds and certificates that were checked."""

    checked: list[str]
    violations: list[Violation]


class Requirement(_Entry):
    """What `passed` needs, whether it is there, and a sentence."""

    name: str
    met: bool
    sentence: str


class Untested(_Entry):
    """A piece that did not run; `left_out`: it could have, with more time or memory, or was left out by request."""

    what: str
    why: str
    left_out: bool = False


class Judged(_Entry):
    """A condition; `holds` is null where that cannot be said. It is judged at the `pessimistic` end of the interval."""

    expression: str
    metric: str
    value: float | None
    pessimistic: float | None
    limit: float
    holds: bool | None


class VerdictEntry(_Entry):
    """The outcome in one sentence, what was found, and what weakens that."""

    outcome: Literal["passed", "failed", "not judged", "no condition"]
    sentence: str
    headline: str
    notes: list[str]


class ObfuscationEntry(_Entry):
    """How far one grey level, of one pixel and of all, moves the feature, over the distance to another image."""

    moved: float
    jumped: float
    images: Count
    threshold: float
    obfuscated: bool
    sentence: str


class Calibration(_Entry):
    """In dB, how well these images are reconstructed from themselves, or the middle of `size`, and by which attack."""

    psnr: float
    by: str
    size: list[Count] | None = None


class _Found(_Entry):
    """What audits of images and of texts both hold."""

    format: Literal[2]
    target: Target
    accuracy: Share | None
    budget: dict[Literal["minutes", "seconds"], float]
    requirements: list[Requirement]
    not_tested: list[Untested]
    failed: list[dict[Literal["what", "kind", "why"], str]]
    thresholds: list[Judged]
    metrics: dict[str, float | None]
    pessimistic: dict[str, float | None]
    evidence: dict[str, Any]
    verdict: VerdictEntry


class Audit(_Found):
    """What `sfumato audit` found."""

    schema: Literal["https://sfumato.dev/schema/audit-2.json"] = msgspec.field(name="$schema")
    data: Data
    reference: dict[Literal["train", "test"], float]
    worst_share: float
    calibration: Calibration | None
    obfuscation: ObfuscationEntry | None
    attacks: Annotated[list[AttackEntry], Meta(min_length=1)]
    best: Best
    queries: list[Sweep]
    knowledge: list[Sweep]
    probes: list[ProbeEntry]
    leakage: LeakageEntry
    bounds: list[Bound]
    consistency: Consistency


class TextAudit(_Found):
    """What `sfumato audit` found of a model of texts.

    `data`: the attacker's texts and the test texts; `shared`: test texts that are the attacker's too, token for token;
    `known`: share of the test texts' tokens that the attacker's texts hold. `tokens`: share of them that are recovered,
    and for the 5 % of the texts of which most are; `by_position` is null where there is only padding.
    """

    schema: Literal["https://sfumato.dev/schema/text-audit-2.json"] = msgspec.field(name="$schema")
    data: dict[str, Any]
    tokens: dict[Literal["recovered", "error", "chance", "worst5", "by_position"], Share | list[Share | None]]
    leakage: LeakageEntry | None


def checked(value: dict[str, Any]) -> dict[str, Any]:
    """The plain values of an audit, or msgspec.ValidationError where they are none."""
    form = TextAudit if value.get("$schema") == TEXT_SCHEMA_ID else Audit
    plain: dict[str, Any] = msgspec.to_builtins(msgspec.convert(value, form), enc_hook=str)
    return plain


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every `audit.json` of this format satisfies."""
    (_,), parts = msgspec.json.schema_components([Audit], ref_template="#/$defs/{name}")
    whole = parts.pop("Audit")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **whole, "$defs": parts}
