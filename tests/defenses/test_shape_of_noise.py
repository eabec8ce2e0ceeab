"""The noise's shape: sensitivity and shapes in closed form, CEM with any Sigma_p, and the way through a training."""

from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

import sfumato
from sfumato import CEM, Noise, bounds, checkpoint
from sfumato.defenses import CEMDefense, Epoch, NoiseShape, ShapedNoise, Site
from sfumato.defenses.shapes import propose, scores
from sfumato.errors import CheckpointError, ConfigError, Interrupted
from sfumato.training import TrainConfig, build_defenses, build_model, load_data, load_run, train_run

D = 6


class TestSensitivity:
    def test_of_a_linear_cloud_in_closed_form(self):
        """F = W' (diag p - p p') W, averaged."""
        z = torch.rand(40, D, generator=torch.Generator().manual_seed(0))
        cloud = nn.Linear(D, 3)
        rows = scores(cloud, z)
        weight, p = cloud.weight.detach().double().numpy(), cloud(z).softmax(1).detach().double().numpy()
        wanted = np.mean([weight.T @ (np.diag(one) - np.outer(one, one)) @ weight for one in p], 0)
        assert np.allclose(rows.T @ rows, wanted, atol=1e-6)

    def test_without_gradients_by_differences(self):
        z = torch.rand(30, D, generator=torch.Generator().manual_seed(0))
        cloud = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 3))

        class Opaque(nn.Module):
            def forward(self, z: torch.Tensor) -> torch.Tensor:
                return torch.from_numpy(cloud(z).detach().numpy().copy())

        told, seen = scores(cloud, z), scores(Opaque(), z)
        assert np.allclose(told.T @ told, seen.T @ seen, rtol=0.02, atol=1e-4)

    def test_of_a_long_feature_without_gradients_there_is_none(self):
        class Opaque(nn.Module):
            def forward(self, z: torch.Tensor) -> torch.Tensor:
                return z[:, :2].detach()

        assert scores(Opaque(), torch.zeros(2, 1100)) is None

    def test_of_many_classes_from_a_sample(self):
        z = torch.randn(3000, D, generator=torch.Generator().manual_seed(0)) * 0.1
        cloud = nn.Linear(D, 20)
        weight, p = cloud.weight.detach().double().numpy(), cloud(z).softmax(1).detach().double().numpy()
        rows = scores(cloud, z)
        wanted = weight.T @ (np.diag(p.mean(0)) - p.T @ p / len(p)) @ weight
        assert np.allclose(rows.T @ rows, wanted, atol=0.03 * wanted.max())


class TestShapes:
    features = torch.randn(2000, D, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, D + 1))
    rows = torch.randn(50, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def shapes(self):
        return {shape.name: shape for shape in propose(self.features, self.rows)}

    def test_white_comes_first_and_every_shape_grows(self):
        found = self.shapes()
        assert list(found) == ["white", "diagonal", "full", "least", "low"]
        for shape in found.values():
            small, large = shape.at(0.1), shape.at(0.2)
            assert 0 < small.rms < large.rms
            assert bool((small.covariance(D).diagonal() < large.covariance(D).diagonal()).all())

    def test_least_lets_less_through_than_any_other_at_the_same_cost(self):
        """At equal trace(F Sigma), against the other shapes and small changes of its own."""
        fisher, covariance = (self.rows.T @ self.rows).numpy(), np.cov(self.features.numpy().T)

        def information(noise: np.ndarray) -> float:
            return (np.linalg.slogdet(covariance + noise)[1] - np.linalg.slogdet(noise)[1]) / 2

        best = self.shapes()["least"].at(2.0).covariance(D).numpy()
        cost = np.trace(fisher @ best)
        random = np.random.default_rng(0)
        others = [self.shapes()[name].at(1.0).covariance(D).numpy() for name in ("white", "diagonal", "full", "low")]
        for _ in range(20):
            change = random.normal(size=(D, D)) * 0.05
            others.append((np.eye(D) + change) @ best @ (np.eye(D) + change).T)
        for other in others:
            assert information(best) <= information(other * cost / np.trace(fisher @ other)) + 1e-3

    def test_full_is_the_inverse_and_diagonal_its_part(self):
        found = self.shapes()
        ridge = 0.01 * float(self.rows.square().sum()) / D * np.eye(D)
        wanted = np.linalg.inv((self.rows.T @ self.rows).numpy() + ridge)
        assert np.allclose(found["full"].at(1.0).covariance(D), wanted * D / np.trace(wanted), rtol=1e-4)
        assert found["diagonal"].at(1.0).rank == 0

    def test_null_is_where_the_cloud_does_not_look(self):
        rows = self.rows.clone()
        rows[:, 2:] = 0
        (null,) = [one.at(1.0) for one in propose(self.features, rows) if one.name == "null"]
        assert null.singular
        assert np.allclose(null.covariance(D)[:2, :2], 0)
        assert null.rank == D - 2

    def test_long_features_need_no_square_matrix(self):
        features = torch.randn(100, 1500, generator=torch.Generator().manual_seed(0))
        rows = torch.randn(30, 1500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found = propose(features, rows)
        assert [one.name for one in found] == ["white", "diagonal", "low"]
        assert found[-1].at(1.0).rank == 64
        assert [one.name for one in propose(features, None)] == ["white"]


class TestMixture:
    """CEM measures in units of the noise, which changes neither the information nor the pull."""

    z = torch.randn(900, D, generator=torch.Generator().manual_seed(2)) @ torch.diag(torch.arange(1.0, D + 1)) / D
    labels = torch.arange(900) % 3
    noise = Noise(0.0, torch.randn(D, D, generator=torch.Generator().manual_seed(3)) / 3)

    def by_class(self) -> tuple[np.ndarray, np.ndarray]:
        classes = [self.z[self.labels == c].double().numpy() for c in range(3)]
        return np.stack([rows.mean(0) for rows in classes]), np.stack([np.cov(rows.T, bias=True) for rows in classes])

    @pytest.mark.parametrize("covariance", ["full", "tied"])
    def test_information_is_that_of_theorem_2(self, covariance):
        cem = CEM(num_classes=3, clusters_per_class=1, noise_std=self.noise, covariance=covariance)
        cem.refresh(self.z, self.labels)
        _, own = self.by_class()
        own = own if covariance == "full" else np.broadcast_to(own.mean(0), own.shape)
        wanted = bounds.mixture_information(
            torch.full((3,), 1 / 3).double(), torch.tensor(own), self.noise.covariance(D)
        )
        assert cem.information == pytest.approx(float(wanted), rel=1e-4)

    def test_the_gradient_is_that_of_the_penalty_with_sigma_p(self):
        cem = CEM(num_classes=3, clusters_per_class=1, noise_std=self.noise)
        cem.refresh(self.z, self.labels)
        batch = self.z[:8].clone().requires_grad_()
        cem(batch, self.labels[:8]).backward()
        means, own = self.by_class()
        sigma = self.noise.covariance(D).numpy()
        for i, row in enumerate(self.z[:8].double().numpy()):
            label = int(self.labels[i])
            wanted = np.linalg.solve(own[label] + sigma, row - means[label]) / (8 * D)
            assert np.allclose(batch.grad[i], wanted, rtol=1e-3, atol=1e-5)

    def test_a_state_carries_the_noise(self):
        cem, other = (CEM(num_classes=3, clusters_per_class=1, noise_std=std) for std in (self.noise, 0.1))
        cem.refresh(self.z, self.labels)
        other.load_state_dict(cem.state_dict())
        assert other.noise.digest == self.noise.digest
        assert other.information == cem.information

    def test_another_noise_starts_the_mixture_anew(self):
        cem = CEM(num_classes=3, clusters_per_class=1, noise_std=0.1, update="steps")
        cem(self.z.clone().requires_grad_(), self.labels)
        assert cem.mixture.refreshes == 1
        cem.follow(self.noise)
        assert cem.mixture.refreshes == 0
        cem.follow(self.noise)  # the same one again changes nothing
        cem(self.z.clone().requires_grad_(), self.labels)
        assert cem.mixture.refreshes == 1

    def test_a_direction_without_noise_is_refused(self):
        with pytest.raises(ConfigError, match="without noise"):
            CEM(num_classes=3, noise_std=torch.ones(D, 2))


FAST = {"data": "digits", "limit": 200, "epochs": 3, "watch": False, "seed": 1}


@pytest.fixture(scope="module")
def sets():
    return load_data(TrainConfig(**FAST))


@pytest.fixture(scope="module")
def folder(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shaped") / "run"
    train_run(TrainConfig(**FAST, defense="cem(0.1) + noise(0.2, shape=fisher)"), folder, sets=sets)
    return folder


class TestTraining:
    def test_a_run_keeps_its_noise(self, folder):
        run = load_run(folder)
        noise = run.model.channel.noise
        assert not noise.white
        assert noise.rms == pytest.approx(0.2, rel=1e-5)
        assert str(run.config.line) == "cem(0.1) + noise(0.2, shape=fisher)"

    @pytest.mark.parametrize(
        ("noise", "match"),
        [
            (None, "noise of shape fisher is missing"),
            (torch.zeros(7), "stored noise is"),
            (torch.ones(5, 1), "noise has a shape for features of 5 values"),
            (torch.full((128, 2), torch.nan), "NaN"),
        ],
    )
    def test_a_run_without_its_noise_is_refused(self, folder, tmp_path, noise, match):
        copy = tmp_path / "run"
        copy.mkdir()
        for path in folder.iterdir():
            if path.is_file():
                (copy / path.name).write_bytes(path.read_bytes())
        tensors, meta = checkpoint.load(copy / "model.safetensors")
        del tensors["channel.noise"]
        tensors |= {} if noise is None else {"channel.noise": noise}
        checkpoint.save(copy / "model.safetensors", tensors, meta)
        with pytest.raises(CheckpointError, match=match):
            load_run(copy)

    def test_a_resumed_training_ends_with_the_same_noise_and_weights(self, sets, folder, tmp_path):
        config = TrainConfig(**FAST, defense="cem(0.1) + noise(0.2, shape=fisher)")
        steps: list[int] = []

        def should_stop() -> bool:
            steps.append(0)
            return len(steps) == 3  # in the second epoch, whose beginning measured the shape

        with pytest.raises(Interrupted):
            train_run(config, tmp_path / "run", sets=sets, should_stop=should_stop)
        train_run(config, tmp_path / "run", sets=sets)
        ours, theirs = (load_run(path).model.state_dict() for path in (tmp_path / "run", folder))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_the_line_and_the_settings_know_the_same_shapes(self):
        assert get_type_hints(TrainConfig)["noise_shape"] == NoiseShape

    def test_white_noise_keeps_the_name_of_its_results(self):
        assert TrainConfig(noise_shape="white").digest() == TrainConfig().digest()
        assert TrainConfig(noise_shape="low").digest() != TrainConfig().digest()


def test_a_feature_too_long_for_a_matrix_is_one_sentence():
    model = sfumato.SplitModel(nn.Identity(), sfumato.Channel(noise_std=0.1), nn.Linear(1100, 2))
    features = torch.rand(20, 1100)
    noise = ShapedNoise(0.1, "fisher")
    noise.attach(Site((1100,), (1, 1, 1100), 2))
    epoch = Epoch(0, 1, lambda: (features, torch.zeros(20)), model, lambda: None)
    with pytest.raises(ConfigError, match="1100 values.*shape=low"):
        noise.on_epoch(epoch)
    noise.shape = "low"
    noise.on_epoch(epoch)
    assert (noise.layout, model.channel.noise.rank) == (1, 19)


def test_cem_follows_the_noise_that_was_measured():
    config = TrainConfig(**FAST, defense="cem(0.1) + noise(0.2, shape=least)")
    sets = load_data(config)
    defenses = build_defenses(config, sets.train.num_classes)
    model = build_model(config, sets.train, defenses)
    with torch.no_grad():
        features = model.features(sets.train.float()).flatten(1)
    for defense in defenses:
        defense.on_epoch(Epoch(1, 3, lambda: (features, sets.train.labels), model, lambda: None))
    cem = next(defense.cem for defense in defenses if isinstance(defense, CEMDefense))
    assert not model.channel.noise.white
    assert cem.noise.digest == model.channel.noise.digest
