"""Watching a training: what the cloud recognises, what can pass, and what a cheap attacker redraws, epoch by epoch."""

from sfumato.watch.measure import FEWEST, MOST, RidgeError, Watcher, ridge_error
from sfumato.watch.monitor import Monitor
from sfumato.watch.sinks import Bar, Lines, Sink, TensorBoard, told

__all__ = [
    "FEWEST",
    "MOST",
    "Bar",
    "Lines",
    "Monitor",
    "RidgeError",
    "Sink",
    "TensorBoard",
    "Watcher",
    "ridge_error",
    "told",
]
