"""Attacks: one file per attack. Each sees exactly what leaves the device, through an `Observer`."""

from sfumato.attacks.activations import Activation, cloud_activations
from sfumato.attacks.base import Attack, AttackConfig, Fit, Job, hold_out
from sfumato.attacks.cloud_only import CloudOnlyAttack, CloudOnlyConfig
from sfumato.attacks.decoder import DecoderAttack, DecoderConfig, StrongAttack, StrongConfig
from sfumato.attacks.gan import GanAttack, GanConfig, gradient_penalty
from sfumato.attacks.identification import Leakage, identify, measure_leakage
from sfumato.attacks.knowledge import Knowledge, NoiseObserver, PairsObserver, QueryObserver, observe
from sfumato.attacks.learned import LearnedAttack, LearnedConfig
from sfumato.attacks.linear import Reading, RidgeAttack, RidgeConfig, rank_activations
from sfumato.attacks.nearest import NearestAttack, NearestConfig
from sfumato.attacks.observer import Observer
from sfumato.attacks.optimization import OptimizationAttack, OptimizationConfig
from sfumato.attacks.posterior import PosteriorAttack, PosteriorConfig
from sfumato.attacks.probes import ATTRIBUTES, Probe, probe_attribute
from sfumato.attacks.queries import Queries, encode_repeated
from sfumato.attacks.reconstruction import (
    Reconstruction,
    chosen_images,
    invert,
    invert_released,
    mean_image_error,
)
from sfumato.attacks.registry import (
    ATTACKS,
    CLOSED_FORM,
    NOT_JUDGED,
    Convergence,
    build,
    config_from_dict,
    figures_of,
    judged,
    name_of,
    strongest,
    suite_verdict,
    with_closed_forms,
)
from sfumato.attacks.smoothness import Obfuscation, obfuscation

__all__ = [
    "ATTACKS",
    "ATTRIBUTES",
    "CLOSED_FORM",
    "NOT_JUDGED",
    "Activation",
    "Attack",
    "AttackConfig",
    "CloudOnlyAttack",
    "CloudOnlyConfig",
    "Convergence",
    "DecoderAttack",
    "DecoderConfig",
    "Fit",
    "GanAttack",
    "GanConfig",
    "Job",
    "Knowledge",
    "Leakage",
    "LearnedAttack",
    "LearnedConfig",
    "NearestAttack",
    "NearestConfig",
    "NoiseObserver",
    "Obfuscation",
    "Observer",
    "OptimizationAttack",
    "OptimizationConfig",
    "PairsObserver",
    "PosteriorAttack",
    "PosteriorConfig",
    "Probe",
    "Queries",
    "QueryObserver",
    "Reading",
    "Reconstruction",
    "RidgeAttack",
    "RidgeConfig",
    "StrongAttack",
    "StrongConfig",
    "build",
    "chosen_images",
    "cloud_activations",
    "config_from_dict",
    "encode_repeated",
    "figures_of",
    "gradient_penalty",
    "hold_out",
    "identify",
    "invert",
    "invert_released",
    "judged",
    "mean_image_error",
    "measure_leakage",
    "name_of",
    "obfuscation",
    "observe",
    "probe_attribute",
    "rank_activations",
    "strongest",
    "suite_verdict",
    "with_closed_forms",
]
