import math

import numpy as np
import pytest
import torch
from audit_cases import tiny_subject
from skimage.metrics import peak_signal_noise_ratio

from sfumato.attacks import Leakage, Reconstruction, invert_released, mean_image_error
from sfumato.audit.bounds import check_consistency
from sfumato.audit.measure import expose, share_interval, strongest, summary
from sfumato.errors import Interrupted


class Halving:
    """Reconstructs every image as grey of half the feature's first value."""

    most_images = None

    def reconstruct(self, z):
        return z[:, :1, None, None].expand(-1, 1, 4, 4) / 2


def reconstructed(mse):
    values = torch.tensor(mse)
    pixels = torch.arange(len(mse), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return Reconstruction(values, -10 * values.log10(), 1 - values, torch.arange(len(mse)), pixels)


def test_every_image_is_measured_by_itself():
    subject = tiny_subject()
    model = subject.model
    exposure = expose(model, subject.sets.test, seed=3, device=torch.device("cpu"))
    found = invert_released(Halving(), exposure.images, exposure.z)
    x = subject.sets.test.images.numpy() / 255
    x_hat = np.clip(exposure.z[:, 0].numpy()[:, None, None, None] / 2, 0, 1) * np.ones_like(x)
    np.testing.assert_allclose(found.mse, ((x - x_hat) ** 2).mean((1, 2, 3)), rtol=1e-5)
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(x, x_hat, strict=True)]
    np.testing.assert_allclose(found.psnr, expected, rtol=1e-5)
    assert np.abs(found.pixels.numpy() / 255 - x_hat).max() <= 0.5 / 255 + 1e-6


def test_a_search_that_is_stopped_goes_on_with_the_images_that_are_left(tmp_path):
    class Slow(Halving):
        most_images = 40

        def __init__(self):
            self.seen = 0

        def reconstruct(self, z, **_):
            self.seen += len(z)
            return super().reconstruct(z)

    subject = tiny_subject()
    exposure = expose(subject.model, subject.sets.test, seed=3, device=torch.device("cpu")).first(40)
    whole, first, second = Slow(), Slow(), Slow()
    undisturbed = invert_released(whole, exposure.images, exposure.z)
    state = tmp_path / "search.state"
    with pytest.raises(Interrupted):
        invert_released(first, exposure.images, exposure.z, state=state, should_stop=lambda: True)
    found = invert_released(second, exposure.images, exposure.z, state=state)
    assert 0 < first.seen < 40
    assert first.seen + second.seen == whole.seen == 40
    assert all(torch.equal(value, vars(undisturbed)[name]) for name, value in vars(found).items())


def test_an_exposure_is_the_same_for_all_and_noisy():
    subject = tiny_subject()
    one, again = (expose(subject.model, subject.sets.test, seed=1, device=torch.device("cpu")) for _ in range(2))
    assert torch.equal(one.z, again.z)
    clean = subject.model.features(subject.sets.test.float()).detach()
    assert float((one.z - clean).std()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(one.first(5).z, one.z[:5])
    assert len(one.first(5)) == 5


def test_worst_is_what_is_redrawn_best():
    values = [0.5, 0.1, 0.2, 0.4] * 10  # 40 images, of which two are 5 %
    figures = summary(reconstructed(values))
    assert figures["images"] == 40
    assert figures["mse"]["worst"] == pytest.approx(0.1)
    assert figures["mse"]["worst5"] == pytest.approx(0.1)
    assert figures["mse"]["mean"] == pytest.approx(0.3)
    assert figures["mse"]["error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(40))
    assert figures["psnr"]["worst"] == pytest.approx(10.0)
    assert figures["ssim"]["worst5"] == pytest.approx(0.9)
    assert summary(reconstructed([0.3]))["mse"]["error"] == 0.0


def test_the_pessimistic_end_covers_what_a_new_sample_would_show():
    """Of samples from one distribution, the true value lies beyond the end that leaks more in about 2.5 %."""
    rng = np.random.default_rng(0)
    truth, tail = 1.0, 0.0
    missed = {"mean": 0, "worst5": 0}
    tail = float(np.sort(rng.exponential(size=400_000))[:20_000].mean())
    for _ in range(60):
        ends = summary(reconstructed(rng.exponential(size=200).tolist()))["mse"]["pessimistic"]
        missed["mean"] += truth < ends["mean"]
        missed["worst5"] += tail < ends["worst5"]
    assert missed["mean"] <= 5
    assert missed["worst5"] <= 9  # bootstrapped over ten images


@pytest.mark.parametrize(("hits", "count"), [(0, 100), (61, 100), (100, 100), (219, 359)])
def test_a_share_has_wilsons_interval(hits, count):
    from scipy.stats import binomtest

    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert share_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_best_attacker_of_each_image():
    best, which = strongest([reconstructed([0.1, 0.4, 0.3]), reconstructed([0.2, 0.2, 0.5])])
    assert which.tolist() == [0, 1, 0]
    assert best.mse.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert best.pixels[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_the_mean_image_is_that_of_the_attackers_images():
    sets = tiny_subject().sets
    train, test = (part.images.numpy().astype(float) / 255 for part in (sets.train, sets.test))
    expected = ((test - train.mean(0)) ** 2).mean()
    assert mean_image_error(sets.train, sets.test) == pytest.approx(expected, rel=1e-5)


def test_the_law_needs_three_standard_errors_and_a_bound_that_gates():
    def attack(mean, error):
        return {"name": "magic", "test": {"mse": {"mean": mean, "error": error}}}

    floor = {"name": "exact", "label": "exact", "value": 0.5, "kind": "error", "gates": True}
    quiet = Leakage(0.1, 0.01, 100, 1, None, None, None, None)
    assert check_consistency([attack(0.4, 0.034)], [floor], quiet)["violations"] == []  # within three
    found = check_consistency([attack(0.4, 0.033)], [floor], quiet)
    assert found["checked"] == ["exact"]
    (violation,) = found["violations"]
    assert violation["sentence"].startswith("the mean test error of the magic attack, 0.40000 ± 0.03300, lies below")
    for change in ({"gates": False}, {"kind": "ratio"}):
        assert check_consistency([attack(0.1, 0.001)], [floor | change], quiet) == {"checked": [], "violations": []}


def test_the_law_holds_for_identification_too():
    def law(share, **certificates):
        values = {"identified_at_most": None, "clipped_at_most": None} | certificates
        return check_consistency([], [], Leakage(share, 0.02, 100, 1, 3.0, 0.1, **values))

    assert law(0.56, identified_at_most=0.5) == {"checked": ["identified_at_most"], "violations": []}  # within three
    (violation,) = law(0.57, identified_at_most=0.5, clipped_at_most=0.9)["violations"]
    assert (violation["bound"], violation["measured"], violation["value"]) == ("identified_at_most", 0.57, 0.5)
    assert violation["sentence"].startswith(
        "the attacker who names images is right for 57.000% ± 2.000% of 100, above the certificate"
    )
    assert violation["sentence"].endswith("this report proves nothing")
