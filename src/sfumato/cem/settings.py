"""Which settings of CEM go together."""

import math
from typing import Literal, NamedTuple

from sfumato.errors import ConfigError
from sfumato.mixture import Covariance, check_covariance

Scaling = Literal["per_dimension", "literal", "as_published"]
Update = Literal["epoch", "running", "steps"]
Fit = Literal["kmeans", "em"]


class Settings(NamedTuple):
    """What is left open is filled in: `groups` of `clusters_per_class` clusters each."""

    groups: int
    clusters_per_class: int
    covariance: Covariance
    class_conditional: bool


def check_settings(
    num_classes: int | None,
    clusters_per_class: int | None,
    clusters: int | None,
    *,
    noise_std: float,
    covariance: Covariance | None,
    scaling: Scaling,
    update: Update,
    fit: Fit,
    class_conditional: bool,
) -> Settings:
    """The settings with their defaults filled in."""
    _check_choice("scaling", scaling, ("per_dimension", "literal", "as_published"))
    _check_choice("update", update, ("epoch", "running", "steps"))
    _check_choice("fit", fit, ("kmeans", "em"))
    if clusters_per_class is None:
        clusters_per_class = 1 if update == "steps" else 3
    if covariance is None:
        covariance = "tied" if update == "steps" else "full"
    check_covariance(covariance)
    for name, value, instead in (("update", update, "running"), ("scaling", scaling, "literal")):
        if value == instead and (covariance == "tied" or update == "steps"):
            raise ConfigError(
                f"{name}={value!r} is Eq. 5 to 7 as printed, one covariance per cluster and N samples in all; give "
                "covariance='full' and update='epoch' or 'running', or the default scaling"
            )
    class_conditional = class_conditional and fit == "kmeans"
    if fit == "em" and (covariance != "full" or update == "steps"):
        raise ConfigError("fit='em' is Algorithm 1 as printed; give update='running' and covariance='full'")
    if not (math.isfinite(noise_std) and noise_std > 0):
        raise ConfigError(
            f"noise_std is {noise_std}, but without noise the information in a feature is infinite and CEM has nothing "
            "to minimise; give a positive standard deviation such as 0.025"
        )
    if num_classes is None:
        if clusters is None or clusters < 1:
            raise ConfigError(
                f"clusters is {clusters}, but without classes only it says how many components the mixture has; give "
                "at least 1, such as clusters=10"
            )
        groups, clusters_per_class, class_conditional = 1, clusters, False
    elif clusters is not None:
        raise ConfigError("clusters is for targets without classes; give clusters_per_class, or num_classes=None")
    elif num_classes < 1 or clusters_per_class < 1:
        raise ConfigError(
            f"num_classes ({num_classes}) and clusters_per_class ({clusters_per_class}) must be at least 1"
        )
    else:
        groups = num_classes
    if scaling == "as_published" and (covariance != "spherical" or update != "epoch" or not class_conditional):
        raise ConfigError(
            "scaling='as_published' is defined for one variance per cluster inside each class; give "
            "covariance='spherical' and update='epoch', or build it with CEM.as_published(...)"
        )
    return Settings(groups, clusters_per_class, covariance, class_conditional)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(known)}")
