"""Defences: one file per mechanism. Noise, clipping and quantisation are the channel's (`sfumato.split`)."""

from sfumato.defenses.base import Batch, Defense, Epoch, Site
from sfumato.defenses.cem import LAMBDA, CEMDefense
from sfumato.defenses.distcorr import DistCorr, distance_correlation
from sfumato.defenses.dropout import Dropout
from sfumato.defenses.label_smoothing import LabelSmoothing
from sfumato.defenses.notation import DefenseLine, Mechanism, defense, expand, in_notation_only
from sfumato.defenses.patrol import Patrol
from sfumato.defenses.registry import build, load_plugin, names, options, register, version
from sfumato.defenses.ressfl import ResSFL
from sfumato.defenses.shaped_noise import NoiseShape, ShapedNoise

__all__ = [
    "LAMBDA",
    "Batch",
    "CEMDefense",
    "Defense",
    "DefenseLine",
    "DistCorr",
    "Dropout",
    "Epoch",
    "LabelSmoothing",
    "Mechanism",
    "NoiseShape",
    "Patrol",
    "ResSFL",
    "ShapedNoise",
    "Site",
    "build",
    "defense",
    "distance_correlation",
    "expand",
    "in_notation_only",
    "load_plugin",
    "names",
    "options",
    "register",
    "version",
]
