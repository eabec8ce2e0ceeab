"""The hard partition behind the bound: nearest centre, inside each class or over all samples."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.mixture._inputs import (
    check_features,
    check_finite,
    check_labels,
    check_positive,
    chunk_rows,
    seeded,
    sorted_clusters,
)
from sfumato.mixture.kmeans import kmeans, nearest, scores
from sfumato.torch_utils import free_to_look


@dataclass(frozen=True)
class Partition:
    """k clusters, each sample belonging to the nearest centre: of its own class, or of all.

    Theorem 2 holds for the moments of any hard partition; this one is defined by its centres alone, so a batch and the
    whole data set are cut along the same lines.

    Attributes:
        centres: (k, D).
        owner: (k,) int64, the class of each cluster: class c owns clusters c m to c m + m - 1. None when clusters
            belong to no class.
        num_classes: number of classes; 0 without classes.
    """

    centres: Tensor
    owner: Tensor | None
    num_classes: int = 0

    @classmethod
    def of(cls, centres: Tensor, num_classes: int | None) -> Self:
        """A partition from its centres (k, D): k / num_classes clusters for each class, or None for no classes.

        Raises:
            FeatureError: k is not a multiple of the number of classes.
        """
        if num_classes is None:
            return cls(centres, None)
        check_positive(num_classes=num_classes)
        if len(centres) % num_classes or len(centres) == 0:
            raise FeatureError(
                f"{len(centres)} centres cannot be shared evenly by {num_classes} classes; pass a multiple"
            )
        owner = torch.arange(num_classes, device=centres.device)
        return cls(centres, owner.repeat_interleave(len(centres) // num_classes), num_classes)

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        features: Tensor,
        labels: Tensor | None,
        *,
        num_classes: int,
        clusters_per_class: int,
        previous: Self | None = None,
        iterations: int = 20,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Cluster by k-means: from k-means++ at first, from the centres of `previous` later.

        A class without samples keeps its previous centres (at first, the mean of all samples). With fewer distinct
        samples than clusters the surplus clusters are empty.

        Args:
            features: (n, D) with n >= 1.
            labels: (n,) int64 classes; None cuts the whole set into num_classes * clusters_per_class clusters.
            num_classes: number of classes.
            clusters_per_class: m.
            previous: a partition of the same shape to start from.
            iterations: at most so many updates of the centres by Lloyd's algorithm; 2 or 3 do for a warm start.
            generator: source of randomness for k-means++; a new one with seed 0 when left out.

        Raises:
            ConfigError: a count below 1.
            FeatureError: features not finite, empty or of a wrong shape or dtype, labels out of range, or a previous
                partition of another shape.
        """
        check_positive(num_classes=num_classes, clusters_per_class=clusters_per_class)
        check_features(features)
        check_finite(features)
        clusters, dim = num_classes * clusters_per_class, features.shape[1]
        if previous is not None:
            shape = tuple(previous.centres.shape)
            if shape != (clusters, dim) or (previous.owner is None) != (labels is None):
                kind = "without classes" if previous.owner is None else "inside classes"
                raise FeatureError(
                    f"the previous partition has centres {shape} {kind}, which does not fit {clusters} clusters in "
                    f"{dim} dimensions; leave previous out"
                )
        source = seeded(generator)
        if labels is None:
            start = None if previous is None else previous.centres
            found = kmeans(features, clusters, init=start, iterations=iterations, generator=source)
            return cls(found.centres, None)
        labels = check_labels(labels, len(features), num_classes)
        if previous is None:
            centres = features.mean(0).repeat(clusters, 1)
        else:
            centres = previous.centres.detach().to(features).clone()
        order, _, ends = sorted_clusters(labels, num_classes)
        for c, (start_row, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if start_row == end:
                continue
            block = slice(c * clusters_per_class, (c + 1) * clusters_per_class)
            centres[block] = kmeans(
                features[order[start_row:end]],
                clusters_per_class,
                init=None if previous is None else centres[block],
                iterations=iterations,
                generator=source,
            ).centres
        return cls.of(centres, num_classes)

    @torch.no_grad()
    def assign(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """The cluster of each sample, (n,) int64: the nearest centre, where there are classes of its own class.

        A batch takes one matrix product and a mask by class; a larger set is walked class by class.

        Args:
            features: (n, D); n = 0 gives an empty assignment.
            labels: (n,) int64 classes; ignored by a partition without classes.

        Raises:
            FeatureError: features of a wrong shape or dtype, or labels missing or out of range.
        """
        check_features(features, self.centres.shape[1])
        if self.owner is None:
            return nearest(features, self.centres)
        num_classes, look = self.num_classes, free_to_look(features)
        labels = check_labels(labels, len(features), num_classes, values=look)
        if len(features) <= chunk_rows(features.shape[1], features.device):
            score = scores(features, self.centres)
            return score.masked_fill_(self.owner != labels[:, None], torch.inf).argmin(1)
        per_class = len(self.centres) // num_classes
        assignment = torch.empty_like(labels)
        order, _, ends = sorted_clusters(labels, num_classes)
        start = 0
        for c, end in enumerate(ends):
            own = self.centres[c * per_class : (c + 1) * per_class]
            for rows in order[start:end].split(chunk_rows(features.shape[1], features.device)):
                assignment[rows] = nearest(features[rows], own) + c * per_class
            start = end
        return assignment
