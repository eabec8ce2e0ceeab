import math

import numpy as np
import pytest
import torch
from reference import SlowCEM

import sfumato
from sfumato.errors import CheckpointError, ConfigError, FeatureError, NotFittedError, SfumatoWarning

CLASSES, DIM, SIGMA = 4, 12, 0.1


def blobs(count: int, seed: int = 0, dim: int = DIM) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    centres = torch.rand(CLASSES, dim, generator=generator)
    mix = 0.1 * torch.randn(CLASSES, dim, dim, generator=generator)
    noise = torch.randn(count, dim, generator=generator)
    return centres[labels] + torch.einsum("nd,nde->ne", noise, mix[labels]), labels


def make(form: str = "full", **options: object) -> sfumato.CEM:
    return sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, covariance=form, **options)  # type: ignore[arg-type]


def slow(cem: sfumato.CEM, features: torch.Tensor, labels: torch.Tensor | None) -> SlowCEM:
    return SlowCEM(
        features.double().numpy(),
        None if labels is None else labels.numpy(),
        cem.mixture.centres.double().numpy(),
        cem.clusters_per_class,
        cem.noise_std,
        cem.covariance,
    )


def loss_and_gradient(cem: sfumato.CEM, z: torch.Tensor, y: torch.Tensor | None) -> tuple[float, np.ndarray]:
    z = z.clone().requires_grad_()
    loss = cem(z, y)
    loss.backward()
    assert z.grad is not None
    return float(loss.detach()), z.grad.double().numpy()


def close(ours: object, theirs: object, tolerance: float = 1e-4) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


# 1, then full batches, then a short one: sizes of the batches of one epoch.
BATCHES = (1, 32, 32, 32, 32, 11)


@pytest.mark.parametrize("form", ["full", "diagonal", "spherical"])
@pytest.mark.parametrize("scaling", ["per_dimension", "literal"])
@pytest.mark.parametrize("update", ["epoch", "running"])
@pytest.mark.parametrize("conditional", [True, False])
def test_every_variant_equals_a_float64_loop_over_a_whole_epoch(form, scaling, update, conditional):
    features, labels = blobs(sum(BATCHES))
    cem = make(form, scaling=scaling, update=update, class_conditional=conditional, clusters_per_class=3)
    y = labels if conditional else None
    cem.refresh(features, y)
    oracle = slow(cem, features, y)
    close(cem.information, oracle.information())
    drifted = features + 0.05 * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    start = 0
    for size in BATCHES:
        z, own = drifted[start : start + size], None if y is None else y[start : start + size]
        start += size
        rows, own_rows = z.double().numpy(), None if own is None else own.numpy()
        if update == "running":
            oracle.carry(rows, own_rows)
        value, gradient = loss_and_gradient(cem, z, own)
        direction = oracle.gradient(rows, own_rows)
        if scaling == "literal":
            close(value, oracle.information())
            close(gradient, direction / len(features))
        else:
            close(value, oracle.information() / DIM)
            close(gradient, direction / (size * DIM))
    close(cem.weights.double().numpy(), np.array(oracle.weights))


@pytest.mark.parametrize("form", ["full", "diagonal", "spherical"])
def test_literal_running_gradient_is_the_derivative_of_equation_7(form):
    """Autograd through Eq. 5-7 with D x D determinants gives the closed-form gradient that the plug-in uses."""
    features, labels = blobs(120)
    cem = make(form, scaling="literal", update="running")
    cem.refresh(features, labels)
    z = features[:16].double().requires_grad_()
    y = labels[:16]
    total, n, k = len(features), 16, cem.mixture.size
    assignment = torch.cdist(z.detach(), cem.mixture.centres.double())
    assignment = assignment.masked_fill(torch.arange(k)[None] // 3 != y[:, None], math.inf).argmin(1)
    loss = torch.zeros((), dtype=torch.float64)
    old = SlowCEM(features.double().numpy(), labels.numpy(), cem.mixture.centres.double().numpy(), 3, SIGMA, form)
    for j in range(k):
        rows = z[assignment == j]
        weight = (old.weights[j] * (total - n) + len(rows)) / total
        matrix = torch.tensor(old.covariances[j])
        if len(rows):
            share = len(rows) / (weight * total)
            centred = rows - torch.tensor(old.means[j])
            fresh = centred.T @ centred / len(rows)
            if form == "diagonal":
                fresh = fresh.diagonal().diag()
            if form == "spherical":
                fresh = torch.eye(DIM, dtype=torch.float64) * fresh.trace() / DIM
            matrix = (1 - share) * matrix + share * fresh
        if weight > 0:
            ratio = torch.logdet(matrix + SIGMA**2 * torch.eye(DIM)) - DIM * math.log(SIGMA**2)
            loss = loss + weight * (-math.log(weight) + 0.5 * ratio)
    (expected,) = torch.autograd.grad(loss, z)
    value, gradient = loss_and_gradient(cem, features[:16], y)
    close(value, float(loss.detach()))
    close(gradient, expected.numpy())


def test_fewer_samples_than_dimensions_use_the_dual_form_and_equal_the_loop():
    features, labels = blobs(150, dim=60)
    cem = make(clusters_per_class=3)
    cem.refresh(features, labels)
    assert int(cem.mixture.counts.max()) * 2 <= 60
    oracle = slow(cem, features, labels)
    close(cem.information, oracle.information())
    close(cem.covariances.numpy(), np.array(oracle.covariances))
    value, gradient = loss_and_gradient(cem, features[:20], labels[:20])
    close(value, oracle.information() / 60)
    close(gradient, oracle.gradient(features[:20].double().numpy(), labels[:20].numpy()) / (20 * 60))


def test_empty_clusters_change_nothing():
    features, labels = blobs(100)
    labels = labels.clamp(max=CLASSES - 2)  # the last class never occurs
    cem = make()
    with pytest.warns(SfumatoWarning, match=f"class {CLASSES - 1} has no samples here"):
        cem.refresh(features, labels)
    assert cem.weights[-3:].tolist() == [0.0, 0.0, 0.0]
    oracle = slow(cem, features, labels)
    close(cem.information, oracle.information())
    value, gradient = loss_and_gradient(cem, features[:10], labels[:10])
    assert math.isfinite(value)
    close(gradient, oracle.gradient(features[:10].double().numpy(), labels[:10].numpy()) / (10 * DIM))


@pytest.mark.parametrize("form", ["full", "diagonal", "spherical"])
def test_the_information_has_this_gradient(form):
    """Over the whole set the plug-in's gradient is the derivative of Theorem 2's bound, by finite differences."""
    features, labels = blobs(80)
    features = features.double()
    cem = make(form, scaling="literal")
    cem.refresh(features, labels)
    _, gradient = loss_and_gradient(cem, features.float(), labels)
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def bound(step: float) -> float:
        moved = SlowCEM(
            (features + step * direction).numpy(),
            labels.numpy(),
            cem.mixture.centres.double().numpy(),
            3,
            SIGMA,
            form,
        )
        return moved.information()

    numeric = (bound(1e-5) - bound(-1e-5)) / 2e-5
    close((gradient * direction.numpy()).sum(), numeric, 1e-3)


def test_mini_batch_gradients_average_to_the_full_gradient():
    features, labels = blobs(139)
    cem = make()
    cem.refresh(features, labels)
    _, full = loss_and_gradient(cem, features, labels)
    order = torch.randperm(139, generator=torch.Generator().manual_seed(0))
    average = np.zeros_like(full)
    for indices in order.split(32):
        _, part = loss_and_gradient(cem, features[indices], labels[indices])
        average[indices.numpy()] += part * len(indices) / 139
    close(average, full, 1e-5)


def test_duplicating_the_data_set_changes_nothing():
    features, labels = blobs(120)
    once, twice = make(), make()
    once.refresh(features, labels)
    twice.load_state_dict(once.state_dict())  # the same centres
    once.refresh(features, labels)
    twice.refresh(features.repeat(2, 1), labels.repeat(2))
    assert twice.information == pytest.approx(once.information, rel=1e-5)
    a, b = (
        loss_and_gradient(once, features[:30], labels[:30]),
        loss_and_gradient(twice, features[:30], labels[:30]),
    )
    assert a[0] == pytest.approx(b[0], rel=1e-5)
    close(a[1], b[1], 1e-4)


def test_scalings_convert_into_each_other():
    features, labels = blobs(120)
    literal, unbiased = make(scaling="literal"), make()
    literal.refresh(features, labels)
    unbiased.refresh(features, labels)
    z, y = features[:32], labels[:32]
    lam = literal.equivalent_weight(16.0, 32, "per_dimension")
    close(16.0 * loss_and_gradient(literal, z, y)[1], lam * loss_and_gradient(unbiased, z, y)[1], 1e-5)
    assert unbiased.equivalent_weight(lam, 32, "literal") == pytest.approx(16.0)


def test_the_papers_lambda_per_nat():
    """DESIGN: lambda = 16, batch 128, N = 50,000 is 0.041 per nat; at D = 512 that is 20.97 per dimension."""
    cem = make(scaling="literal")
    cem.refresh(torch.rand(60, 512), torch.arange(60) % CLASSES)
    cem.mixture.samples = 50_000
    assert cem.equivalent_weight(16.0, 128, "per_dimension") == pytest.approx(20.97152)


def test_as_published_equals_the_loop_value_and_gradient():
    features, labels = blobs(200)
    cem = sfumato.CEM.as_published(num_classes=CLASSES, noise_std=SIGMA)
    assert cem.mixture.size == 20
    cem.refresh(features, labels)
    oracle = slow(cem, features, labels)
    for indices in (slice(0, 1), slice(1, 65), slice(65, 76)):
        z, y = features[indices], labels[indices]
        value, gradient = loss_and_gradient(cem, z, y)
        rows = z.double().numpy()
        close(value, oracle.published(rows, y.numpy(), CLASSES))
        numeric = np.zeros_like(rows)
        for index in np.ndindex(rows.shape):
            if index[0] > 3:
                continue
            up, down = rows.copy(), rows.copy()
            up[index] += 1e-6
            down[index] -= 1e-6
            numeric[index] = (
                oracle.published(up, y.numpy(), CLASSES) - oracle.published(down, y.numpy(), CLASSES)
            ) / 2e-6
        close(gradient[:4], numeric[:4], 1e-3)


def test_bound_falls_when_clusters_tighten_and_shape_matters():
    features, labels = blobs(400)
    means = torch.stack([features[labels == c].mean(0) for c in range(CLASSES)])
    tight = means[labels] + 0.5 * (features - means[labels])
    values = {}
    for form in ("full", "diagonal", "spherical"):
        cem = make(form, clusters_per_class=1)
        cem.refresh(features, labels)
        values[form] = cem.information
        tighter = make(form, clusters_per_class=1)
        tighter.refresh(tight, labels)
        assert tighter.information < cem.information
    assert values["full"] < values["diagonal"] < values["spherical"]


def test_descending_the_loss_lowers_the_bound():
    features, labels = blobs(200)
    cem = make()
    cem.refresh(features, labels)
    before = cem.information
    z = features.clone().requires_grad_()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(cem(z, labels), z)
        z = (z - 50.0 * gradient).detach().requires_grad_()
    with pytest.warns(SfumatoWarning, match="the mixture does not fit: it pulls 0.2"):  # what it was fitted to is gone
        cem.refresh(z.detach(), labels)
    assert cem.information < before - 1


def test_images_half_precision_and_integer_classes_are_flattened_row_major():
    features, labels = blobs(64)
    cem = make()
    cem.refresh(features.view(64, 3, 2, 2), labels)
    z = features.view(64, 3, 2, 2).to(torch.bfloat16).requires_grad_()
    cem(z, labels).backward()
    assert z.grad is not None
    assert z.grad.dtype == torch.bfloat16
    reference = loss_and_gradient(cem, z.detach().float().flatten(1), labels)[1]
    close(z.grad.float().flatten(1).numpy(), reference, 1e-2)


def test_state_dict_round_trip_is_exact():
    features, labels = blobs(150)
    cem = make(update="running")
    cem.refresh(features, labels)
    loss_and_gradient(cem, features[:40], labels[:40])
    other = make(update="running")
    other.load_state_dict({name: value.clone() for name, value in cem.state_dict().items()})
    assert other.information == cem.information
    for z, y in ((features[40:80], labels[40:80]), (features[80:], labels[80:])):
        assert np.array_equal(loss_and_gradient(cem, z, y)[1], loss_and_gradient(other, z, y)[1])
    cem.refresh(features, labels)
    other.refresh(features, labels)
    assert torch.equal(cem.covariances, other.covariances)


def test_state_of_another_mixture_is_refused():
    cem = make()
    cem.refresh(*blobs(60))
    with pytest.raises(CheckpointError, match="12 clusters, this CEM 8; build it with the settings"):
        make(clusters_per_class=2).load_state_dict(cem.state_dict())


def test_noisy_features_have_the_noise_subtracted():
    features, labels = blobs(6000)
    noisy = features + SIGMA * torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
    clean, corrected, raw = (make(clusters_per_class=1) for _ in range(3))
    clean.refresh(features, labels)
    corrected.refresh(noisy, labels, noisy=True)
    raw.refresh(noisy, labels)
    assert corrected.information == pytest.approx(clean.information, rel=0.02)
    assert raw.information > clean.information * 1.05
    tiny = make(clusters_per_class=1)
    tiny.refresh(SIGMA * 0.5 * torch.randn(100, DIM), torch.arange(100) % CLASSES, noisy=True)
    assert float(torch.linalg.eigvalsh(tiny.covariances).min()) >= -1e-7


def test_diagnostics_of_the_ideal_case_of_section_3_4():
    labels = torch.arange(400) % CLASSES
    means = 10.0 * torch.eye(CLASSES, DIM)
    features = means[labels] + 1e-4 * torch.randn(400, DIM)
    cem = make(clusters_per_class=1)
    cem.refresh(features, labels)
    found = cem.diagnostics()
    assert found.own_cluster_posterior == pytest.approx(1.0, abs=1e-6)
    assert found.information == pytest.approx(math.log(CLASSES), abs=1e-3)
    assert found.gap_over_noise == pytest.approx(200 / (DIM * SIGMA**2), rel=1e-3)
    assert found.noise_over_spread > 1e4
    assert found.notes == ()


def test_diagnostics_say_when_the_sample_is_too_small():
    cem = make()
    cem.refresh(*blobs(60))
    assert any("underestimate the information" in note for note in cem.diagnostics().notes)


def test_collapse_is_reported_once_with_a_remedy():
    features, labels = blobs(100)
    cem = make()
    cem.refresh(features, labels)
    with pytest.warns(SfumatoWarning, match="have collapsed.*lower lambda, or give the loss its third argument"):
        cem.refresh(features * 1e-4, labels)
    cem.refresh(features * 1e-4, labels)  # warnings are errors in this suite: a second one would fail


def test_escape_by_scale_is_reported_with_a_remedy():
    features, labels = blobs(100)
    cem = make()
    cem.refresh(features, labels)
    cem.refresh(features, labels)
    with pytest.warns(SfumatoWarning, match="escapes the noise by scale.*a sigmoid at the end of the encoder"):
        cem.refresh(features * 50, labels)


def test_degenerate_clusters_are_reported_with_a_remedy():
    features, labels = blobs(12)
    with pytest.warns(SfumatoWarning, match="fewer than two samples; lower clusters_per_class"):
        make(clusters_per_class=5).refresh(features, labels)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"noise_std": 0.0}, "noise_std is 0.0.*give a positive standard deviation such as 0.025"),
        ({"noise_std": math.nan}, "noise_std is nan"),
        ({"covariance": "banana"}, "full, tied, diagonal"),
        ({"scaling": "loud"}, "scaling is 'loud'; choose one of per_dimension, literal, as_published"),
        ({"update": "never"}, "update is 'never'; choose one of epoch, running"),
        ({"num_classes": 0}, "must be at least 1"),
        ({"scaling": "as_published"}, "CEM.as_published"),
    ],
)
def test_settings_without_meaning(options, text):
    with pytest.raises(ConfigError, match=text):
        sfumato.CEM(**({"num_classes": CLASSES, "noise_std": SIGMA} | options))


def test_loss_before_refresh():
    with pytest.raises(NotFittedError, match=r"call cem.refresh\(features, labels\) once before the first batch"):
        make()(torch.rand(3, DIM), torch.zeros(3, dtype=torch.int64))


def test_bad_features_and_labels():
    features, labels = blobs(60)
    cem = make()
    with pytest.raises(FeatureError, match="NaN or infinity; the training has diverged"):
        cem.refresh(torch.full((10, DIM), math.nan), labels[:10])
    with pytest.raises(FeatureError, match="no features"):
        cem.refresh(features[:0], labels[:0])
    cem.refresh(features, labels)
    with pytest.raises(FeatureError, match="features have 5 dimensions, but 12 at the last refresh"):
        cem(torch.rand(3, 5), labels[:3])
    with pytest.raises(FeatureError, match="need labels; pass them or set class_conditional=False"):
        cem(features)
    with pytest.raises(FeatureError, match=r"labels must have shape \(60,\)"):
        cem(features, labels[:3])
    with pytest.raises(FeatureError, match="label"):
        cem(features, labels + 1)
    with pytest.raises(FeatureError, match="floating-point tensor"):
        cem(torch.zeros(3, DIM, dtype=torch.int64), labels[:3])
    broken = features.clone()
    broken[3, 2] = math.nan
    with pytest.raises(FeatureError, match="NaN or infinity; the training has diverged"):
        cem(broken, labels)
    assert float(cem(features[:0], labels[:0])) == 0.0


def test_autocast_does_not_reach_the_loss():
    features, labels = blobs(64)
    cem = make()
    cem.refresh(features, labels)
    plain = loss_and_gradient(cem, features, labels)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss_and_gradient(cem, features, labels)
        cem.refresh(features, labels)
    assert plain[0] == cast[0]
    assert np.array_equal(plain[1], cast[1])
