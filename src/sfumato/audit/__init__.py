"""Auditing any split model: the strongest attacks in a budget, the bounds beside them, a report and a gate."""

from sfumato.audit.images import DataOptions, audit_sets, other_images
from sfumato.audit.inputs import InputDescription, read_description
from sfumato.audit.result import is_audit, read_audit
from sfumato.audit.run import Audited, run_audit
from sfumato.audit.schema import schema
from sfumato.audit.subject import ChannelOptions, GaussianPrior, Subject, check_subject
from sfumato.audit.target import load_target
from sfumato.audit.texts import Texts, audit_texts, read_texts
from sfumato.audit.thresholds import METRICS, TEXT_METRICS, Threshold, conclude, judge, parse_threshold

__all__ = [
    "METRICS",
    "TEXT_METRICS",
    "Audited",
    "ChannelOptions",
    "DataOptions",
    "GaussianPrior",
    "InputDescription",
    "Subject",
    "Texts",
    "Threshold",
    "audit_sets",
    "audit_texts",
    "check_subject",
    "conclude",
    "is_audit",
    "judge",
    "load_target",
    "other_images",
    "parse_threshold",
    "read_audit",
    "read_description",
    "read_texts",
    "run_audit",
    "schema",
]
