"""What besides the image can be read: attributes, from the feature and from a reconstruction."""

import time
from typing import Any

from sfumato import attacks
from sfumato.attacks import Attack
from sfumato.attacks.probes import ATTRIBUTES, probe_attribute
from sfumato.audit.images import shuffled
from sfumato.audit.inversion import Stop, Tell
from sfumato.audit.stage import Stage
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


def run_probes(piece: Piece, stage: Stage, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Every property from the feature, and from what the attack of this piece redraws."""
    began = time.monotonic()
    known = shuffled(stage.sets.train, piece.options["train"], stage.seed, "attacker")
    unseen = stage.test.first(piece.images or len(stage.test)).images
    observer = stage.observer(known)
    redrawing = attacks.build(config_of(piece, stage, decided)).fit(observer)
    names = [name for name in ATTRIBUTES if _applies(name, stage)]
    found = []
    for name in names:
        for source, attack in (("feature", None), ("reconstruction", redrawing)):
            if should_stop is not None and should_stop():
                raise Interrupted("the audit was stopped; the same command goes on from there")
            found.append(_probe(name, source, attack, observer, unseen, stage))
        tell(f"{piece.name}: {name} read from the feature in {found[-2]['accuracy']:.1%} of the images")
    stage.folder.finish(piece.name, {"probes": found, "seconds": round(time.monotonic() - began, 2)})


def _applies(name: str, stage: Stage) -> bool:
    if name == "class":
        return stage.sets.labelled and stage.sets.train.num_classes > 1
    return name != "colour" or stage.sets.train.image_shape[0] > 1


def _probe(name: str, source: str, attack: Attack | None, observer: Any, unseen: Any, stage: Stage) -> dict[str, Any]:
    model = stage.subject.model
    probe = probe_attribute(observer, model, unseen, name, attack=attack, seed=stage.seed)
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
