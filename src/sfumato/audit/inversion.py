"""One attack of an audit: train it as far as the time goes, let it reconstruct the same features as all others."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sfumato import attacks
from sfumato.attacks import Attack, invert_released
from sfumato.audit.images import shuffled
from sfumato.audit.measure import summary
from sfumato.audit.stage import Stage
from sfumato.audit.suite import Piece
from sfumato.audit.training import config_of

__all__ = ["Tell", "fit_attack", "outcome_of", "run_attack"]

Tell = Callable[[str], None]
Stop = Callable[[], bool]


def run_attack(piece: Piece, stage: Stage, decided: dict[str, Any], tell: Tell, should_stop: Stop | None) -> None:
    """Fit, reconstruct training and test images, store figures and pixels."""
    began = time.monotonic()
    attack, described = fit_attack(piece, stage, decided, tell, should_stop)
    most = decided.get("shown", piece.images)
    parts: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, exposure in (("train", stage.train), ("test", stage.test)):
        chosen = exposure if most is None else exposure.first(most)
        state = stage.folder.state(f"{piece.name}.state.{name}")
        found = invert_released(
            attack, chosen.images, chosen.z, device=stage.device, state=state, should_stop=should_stop
        )
        parts[name] = summary(found)
        tensors |= found.tensors(name)
    seconds = described.pop("earlier", 0.0) + time.monotonic() - began
    stage.folder.finish(piece.name, described | parts | {"seconds": round(seconds, 2)}, tensors)


def fit_attack(
    piece: Piece, stage: Stage, decided: dict[str, Any], tell: Tell, should_stop: Stop | None, observer: Any = None
) -> tuple[Attack, dict[str, Any]]:
    """The fitted attack, and what a reader has to know about it."""
    config = config_of(piece, stage, decided)
    attack = attacks.build(config)
    count = decided.get("images", len(stage.sets.train))
    if observer is None:
        whole = count >= len(stage.sets.train)
        images = stage.sets.train if whole else shuffled(stage.sets.train, count, stage.seed, "attacker")
        observer = stage.observer(images)

    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        tell(f"{piece.name}: epoch {done}/{total}, error on held-out images {figures['held_out_mse']:.5f}")

    attack.fit(observer, state=stage.folder.state(piece.name), progress=progress, should_stop=should_stop)
    described = {
        "name": piece.name,
        "attack": piece.attack,
        "images": len(observer),
        "settings": asdict(config),
        **outcome_of(attack),
        "trivial_mse": None if attack.outcome is None else attack.outcome.trivial_mse,
        "history": [
            {name: line[name] for name in ("epoch", "mse", "held_out_mse") if name in line}
            for line in getattr(attack, "history", [])
        ],
    }
    return attack, described


def outcome_of(attack: Attack) -> dict[str, Any]:
    """Whether the attack came to rest, in JSON."""
    if attack.outcome is None:
        return {"converged": None, "reason": "", "held_out_mse": None}
    outcome = attack.outcome
    return {"converged": outcome.converged, "reason": outcome.reason, "held_out_mse": outcome.held_out_mse}
