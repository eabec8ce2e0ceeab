"""One attack of an audit: train it as far as the time goes, let it reconstruct the same features as all others."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from sfumato import attacks
from sfumato.attacks import Attack, Observer, Reconstruction, invert_released, rank_activations
from sfumato.audit.context import Context
from sfumato.audit.images import shuffled
from sfumato.audit.measure import Exposure, summary
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of
from sfumato.errors import FeatureError

__all__ = ["Stop", "Tell", "outcome_of", "run_attack"]

Tell = Callable[[str], object]
Stop = Callable[[], bool]

_AT_ONCE = 16  # images of a search between two looks at the clock


def run_attack(piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Fit, reconstruct training and test images, store figures and pixels."""
    began = time.monotonic()
    attack, described = _fitted(piece, context, decided, tell, should_stop)
    most = decided.get("shown", piece.images)
    parts: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    # A search may stop at its deadline, and test images count most.
    for name, exposure, share in (("test", context.test, 0.5), ("train", context.train, 1.0)):
        chosen = exposure if most is None else exposure.first(most)
        now = time.monotonic()
        until = now + share * (decided["deadline"] - now)
        found = _reconstructed(attack, chosen, until, context, f"{piece.name}.state.{name}", should_stop)
        parts[name] = summary(found)
        tensors |= found.tensors(name)
    seconds = time.monotonic() - began
    context.folder.finish(piece.name, described | parts | {"seconds": round(seconds, 2)}, tensors)


def _fitted(
    piece: Piece, context: Context, decided: dict[str, Any], tell: Tell, should_stop: Stop | None
) -> tuple[Attack, dict[str, Any]]:
    """The fitted attack, and what a reader has to know about it."""
    config = config_of(piece, context, decided)
    count = decided.get("images", len(context.sets.train))
    whole = count >= len(context.sets.train)
    images = context.sets.train if whole else shuffled(context.sets.train, count, context.seed, "attacker")
    observer = context.observer(images)

    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        tell(f"{piece.name}: epoch {done}/{total}, error on held-out images {figures['held_out_mse']:.5f}")

    if most := piece.options.get("cloud"):
        attack = _inside_the_cloud(config, observer, most)
    else:
        attack = attacks.build(config)
        attack.deadline = decided["deadline"]
        attack.fit(observer, state=context.folder.state(piece.name), progress=progress, should_stop=should_stop)
    described = {
        "name": piece.name,
        "attack": piece.attack,
        "images": len(observer),
        "settings": asdict(config),
        **outcome_of(attack),
        "trivial_mse": None if attack.outcome is None else attack.outcome.trivial_mse,
        "history": [
            {name: line[name] for name in ("epoch", "mse", "held_out_mse") if name in line} for line in attack.history
        ],
    }
    return attack, described


def _inside_the_cloud(config: Any, observer: Observer, most: int) -> Attack:
    """The best, by the attacker's own validation images, of attacks on what the cloud computes from what it receives.

    The activations from which a linear attack reads most are attacked each and together.
    """
    names = [one.name for one in rank_activations(observer)[:most]]
    if not names:
        raise FeatureError("the cloud computes nothing that has a row for each image, so nothing of it can be attacked")
    views = [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])
    best: Attack | None = None
    for view in views:
        attack = attacks.build(config).fit(observer.inside(*view))
        assert attack.outcome is not None
        attack.outcome = replace(attack.outcome, reason=f"{attack.outcome.reason}; reads {' and '.join(view)}")
        if best is None or best.outcome is None or attack.outcome.held_out_mse < best.outcome.held_out_mse:
            best = attack
    assert best is not None
    return best


def _reconstructed(
    attack: Attack, exposure: Exposure, until: float, context: Context, name: str, should_stop: Stop | None
) -> Reconstruction:
    """All of the images, or, of a search that is late, the first ones."""
    if attack.most_images is None:
        return invert_released(attack, exposure.images, exposure.z, device=context.device)
    parts: list[Reconstruction] = []
    for place in torch.arange(len(exposure)).split(_AT_ONCE):
        began = time.monotonic()
        some, state = exposure.images.subset(place.tolist()), context.folder.state(f"{name}.{int(place[0])}")
        found = invert_released(
            attack, some, exposure.z[place], device=context.device, state=state, should_stop=should_stop
        )
        parts.append(replace(found, index=place))
        if 2 * time.monotonic() - began > until:  # the next part would be late
            break
    joined = {name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])}
    return Reconstruction(**joined)


def outcome_of(attack: Attack) -> dict[str, Any]:
    """Whether the attack came to rest, in JSON."""
    if attack.outcome is None:
        return {"converged": None, "reason": "", "held_out_mse": None}
    outcome = attack.outcome
    return {"converged": outcome.converged, "reason": outcome.reason, "held_out_mse": outcome.held_out_mse}
