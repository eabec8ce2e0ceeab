"""CEM written once more, as slowly as possible: float64, one cluster at a time, determinants from eigenvalues."""

import numpy as np

Array = np.ndarray


def assign(features: Array, labels: Array | None, centres: Array, per_class: int) -> Array:
    chosen = []
    for i, row in enumerate(features):
        best, best_distance = -1, np.inf
        for j, centre in enumerate(centres):
            if labels is not None and j // per_class != labels[i]:
                continue
            distance = float(((row - centre) ** 2).sum())
            if distance < best_distance:
                best, best_distance = j, distance
        chosen.append(best)
    return np.array(chosen)


def covariance(rows: Array, centre: Array, form: str) -> Array:
    """D x D covariance around `centre` in the given form."""
    dim = rows.shape[1]
    total = np.zeros((dim, dim))
    for row in rows:
        total += np.outer(row - centre, row - centre)
    total /= len(rows)
    if form == "diagonal":
        return np.diag(np.diag(total))
    if form == "spherical":
        return np.eye(dim) * np.trace(total) / dim
    return total


class SlowCEM:
    """The mixture of a refresh and the loss of each batch; `form` is the covariance family."""

    def __init__(self, features: Array, labels: Array | None, centres: Array, per_class: int, sigma: float, form: str):
        self.form, self.sigma, self.per_class = form, sigma, per_class
        self.centres, self.total, self.dim = centres, len(features), features.shape[1]
        chosen = assign(features, labels, centres, per_class)
        self.weights, self.means, self.covariances = [], [], []
        for j in range(len(centres)):
            rows = features[chosen == j]
            self.weights.append(len(rows) / self.total)
            self.means.append(rows.mean(0) if len(rows) else centres[j])
            self.covariances.append(
                covariance(rows, self.means[-1], form) if len(rows) else np.zeros((self.dim, self.dim))
            )

    def information(self) -> float:
        value = 0.0
        for weight, matrix in zip(self.weights, self.covariances, strict=True):
            if weight > 0:
                eigenvalues = np.linalg.eigvalsh(matrix + self.sigma**2 * np.eye(self.dim))
                value += weight * (-np.log(weight) + 0.5 * np.log(eigenvalues / self.sigma**2).sum())
        return value

    def carry(self, features: Array, labels: Array | None) -> None:
        """Eq. 5 and Eq. 6."""
        chosen = assign(features, labels, self.centres, self.per_class)
        for j in range(len(self.weights)):
            count = int((chosen == j).sum())
            self.weights[j] = (self.weights[j] * (self.total - len(features)) + count) / self.total
            if count:
                share = count / (self.weights[j] * self.total)
                fresh = covariance(features[chosen == j], self.means[j], self.form)
                self.covariances[j] = (1 - share) * self.covariances[j] + share * fresh

    def gradient(self, features: Array, labels: Array | None) -> Array:
        """B_j^-1 (z_i - mu_j) for each sample, by solving."""
        chosen = assign(features, labels, self.centres, self.per_class)
        rows = []
        for row, j in zip(features, chosen, strict=True):
            matrix = self.covariances[j] + self.sigma**2 * np.eye(self.dim)
            rows.append(np.linalg.solve(matrix, row - self.means[j]))
        return np.array(rows)

    def published(self, features: Array, labels: Array, classes: int) -> float:
        """The authors' released loss as REFERENCE states it."""
        chosen = assign(features, labels, self.centres, self.per_class)
        per_class = []
        for c in range(classes):
            own = list(range(c * self.per_class, (c + 1) * self.per_class))
            in_class = sum(self.weights[j] for j in own)
            present = [j for j in own if (chosen == j).any()]
            if not present:
                continue
            value = 0.0
            for j in present:
                rows = features[chosen == j]
                share = self.weights[j] / in_class
                batch = ((rows - self.centres[j]) ** 2).mean()
                fraction = min(10 * len(rows) / (share * self.total / classes), 0.99)
                variance = fraction * batch + (1 - fraction) * self.covariances[j][0, 0]
                value += share * max(0.0, np.log(variance + 0.01) - np.log(0.125 * self.sigma**2 + 0.01))
            per_class.append(value)
        return float(np.mean(per_class))
