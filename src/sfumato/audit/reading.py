"""What besides the image can be read: attributes, from the feature and from a reconstruction."""

import time
from typing import Any

from sfumato import attacks
from sfumato.attacks import Attack
from sfumato.attacks.probes import ATTRIBUTES, probe_attribute
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Stop, Tell
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.errors import Interrupted

__all__ = ["run_probes"]

_WORDS = {
    "brightness": "brighter than the median image",
    "contrast": "more contrast than the median image",
    "asymmetry": "less symmetric than the median image",
    "colour": "the strongest colour channel",
    "class": "the class, which the cloud is meant to read",
}


def run_probes(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Every property from the feature, and from what the attack of this piece reconstructs."""
    began = time.monotonic()
    known = shuffled(context.sets.train, piece.options["train"], context.seed, "attacker")
    unseen = context.test.first(piece.images or len(context.test)).images
    observer = context.observer(known)
    reconstructing = attacks.build(config_of(piece, context, decided)).fit(observer)
    names = [name for name in ATTRIBUTES if _applies(name, context)]
    found = []
    for name in names:
        for source, attack in (("feature", None), ("reconstruction", reconstructing)):
            if should_stop is not None and should_stop():
                raise Interrupted("the audit was stopped; the same command resumes it")
            found.append(_probe(name, source, attack, observer, unseen, context))
        tell(f"{piece.name}: {name} read from the feature in {found[-2]['accuracy']:.1%} of the images")
    context.folder.finish(piece.name, {"probes": found, "seconds": round(time.monotonic() - began, 2)})


def _applies(name: str, context: Context) -> bool:
    if name == "class":
        return context.sets.labelled and context.sets.train.num_classes > 1
    return name != "colour" or context.sets.train.image_shape[0] > 1


def _probe(
    name: str, source: str, attack: Attack | None, observer: Any, unseen: Any, context: Context
) -> dict[str, Any]:
    model = context.subject.model
    probe = probe_attribute(observer, model, unseen, name, attack=attack, seed=context.seed)
    return {
        "name": f"{name}_{source}",
        "label": f"{_WORDS[name]}, from the {source}",
        "property": name,
        "source": source,
        "accuracy": probe.accuracy,
        "error": probe.error,
        "chance": probe.chance,
        "images": probe.images,
    }
