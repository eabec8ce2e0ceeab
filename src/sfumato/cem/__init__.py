"""Conditional entropy maximization: the loss, the schedules of its weight, and whether a training with it is well."""

from sfumato.cem.health import Diagnostics, Health
from sfumato.cem.loss import CEM
from sfumato.cem.schedules import SCHEDULES, schedule

__all__ = ["CEM", "SCHEDULES", "Diagnostics", "Health", "schedule"]
