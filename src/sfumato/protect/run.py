"""From a frozen split model to one with the noise that protects most at the accuracy that may be lost."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.attacks import (
    DecoderConfig,
    Observer,
    build,
    invert,
    mean_image_error,
    measure_leakage,
    name_of,
    with_closed_forms,
)
from sfumato.attacks import strongest as strongest_attack
from sfumato.audit import Subject
from sfumato.data import DataSets, ImageSet
from sfumato.defenses.shapes import WHITE, Shape, propose, scores, unit_of
from sfumato.errors import ConfigError
from sfumato.files import read_json, write_json
from sfumato.noise import Noise
from sfumato.provenance import evidence
from sfumato.seeds import generator
from sfumato.settings import check_settings
from sfumato.split import SplitModel, save_split
from sfumato.torch_utils import evaluating
from sfumato.training.evaluate import collect_features

__all__ = ["ProtectConfig", "protect"]

_STEPS = 12  # of the bisection over a factor of 10^6: to a third of a per cent
_RANGE = 1e3  # strengths that are tried, in the features' spread, up and down
_DRAWS = 8  # of the noise, for an accuracy
_FISHER = 512  # features at which the cloud's sensitivity is measured
_TUNED = 3  # times the cloud is retuned, each time at the noise that it then bears
_ABOVE = 1.15  # times the noise that it bears: what it is retuned at
_PASSES, _BATCH, _RATE = 20, 128, 1e-3
_AROUND = (0.5, 2.0)  # of the strength found: the curve beside it


@dataclass(frozen=True)
class ProtectConfig:
    """How noise is sought.

    Attributes:
        lose_at_most: Points of accuracy that the noise may cost, against the model without noise.
        retune_cloud: Train the cloud half on noisy features; the encoder stays as it is.
        attacker_images: Training images that the attacks learn from, at most.
        judged_images: Test images that are attacked, at most.
        decoder_epochs: Epochs of the trained attacker on white noise and on the chosen shape. 0 leaves it out.
        seed: Random seed; the same seed on the same machine and version gives the same result.
    """

    lose_at_most: float = 1.0
    retune_cloud: bool = False
    attacker_images: int = 4000
    judged_images: int = 1000
    decoder_epochs: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"lose_at_most": 0, "attacker_images": 16, "judged_images": 8, "decoder_epochs": 0}
        check_settings(self, least=least, below={"lose_at_most": 100})


class _Strength(NamedTuple):
    shape: Shape
    strength: float
    cloud: nn.Module
    accuracy: float

    @property
    def noise(self) -> Noise:
        return self.shape.at(self.strength)


class _Data(NamedTuple):
    """Clean features and labels of images; the labels are the cloud's own answers where the images have none."""

    features: Tensor
    labels: Tensor


class _Trials:
    """What was measured so far, by name; kept in a file, so that the same command resumes after the last of them."""

    def __init__(self, path: Path | None, key: dict[str, Any]) -> None:
        self._path, self._key = path, key
        kept = read_json(path) if path is not None and path.exists() else {}
        self._done: dict[str, Any] = kept["trials"] if kept.get("key") == key else {}

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result of a trial, which is measured unless it is kept."""
        if name not in self._done:
            self._done[name] = measure()
            if self._path is not None:
                write_json(self._path, {"key": self._key, "trials": self._done})
        return self._done[name]


def protect(
    subject: Subject,
    sets: DataSets,
    out: Path,
    config: ProtectConfig | None = None,
    *,
    tell: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Find, for each shape of `propose`, the strongest noise that keeps the accuracy; attack each; keep the best.

    Half of the test images are the validation set that strengths are sought on, the other half judges: accuracy,
    attacks, identification and information are measured there. The noise is chosen by identification, among shapes
    within one standard error of the lowest by the attackers' error (the smallest of all attacks); noise that leaves a
    direction bare is shown and never chosen.

    A second call with the same arguments resumes after the last trial that `trials.json` in `out` has (of a subject
    with a digest; a retuned cloud is tuned again).

    Args:
        subject: of `sfumato.audit.load_target`; its own noise is replaced, its clip, levels and transforms stay.
        sets: images; without labels, accuracy is agreement with the model's own answers.
        out: folder of the result: a saved split (an ONNX pair cannot be recorded: there only `noise.f32` with the
            numbers), and `protect.json`.
        config: settings.
        tell: hears what is going on.

    Returns:
        What `protect.json` holds.

    Raises:
        ConfigError: the target has no cloud that classifies, there are too few images, or no strength meets the floor.
    """
    config = config or ProtectConfig()
    _check(subject, sets, config)
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "trials.json" if subject.digest else None
    search = _Search(subject, sets, kept, config, tell)
    rows = search.sensitivity()
    found = [best for shape in propose(search.known.features, rows) if (best := search.tuned(shape)) is not None]
    lines = [search.line(one) for one in found]
    best = found[_chosen(lines)]
    curves = {
        one.shape.name: search.curve(one, line)
        for one, line in zip(found, lines, strict=True)
        if one.shape.name in ("white", best.shape.name)
    }
    result: dict[str, Any] = {
        "target": subject.name,
        "lose_at_most": config.lose_at_most,
        "clean_accuracy": search.clean,
        "floor": search.floor,
        "retuned": config.retune_cloud,
        "labelled": sets.labelled,
        "images": search.images,
        "values": search.known.features[0].numel(),
        "mean_image_mse": mean_image_error(search.attacker, search.judged),
        "chosen": best.shape.name,
        "shapes": lines,
        "curves": curves,
        "sensitivity": "none: no gradients and more than 1,024 values" if rows is None else "Fisher information",
        "saved": subject.kind != "onnx",
        "seconds": round(time.monotonic() - began, 1),
        "config": vars(config),
        "evidence": evidence("cpu"),
    }
    if result["saved"]:
        sought_for = {name: result[name] for name in ("target", "floor", "chosen", "retuned")}
        save_split(
            _with_noise(subject.model, best.noise, best.cloud), out,
            example_input=torch.zeros(1, *search.attacker.image_shape),
            about={"defense": "noise", "protect": sought_for},
            class_names=subject.classes or search.attacker.classes,
        )  # fmt: skip
    else:
        (out / "noise.f32").write_bytes(best.noise.array(result["values"]).tobytes())
    write_json(out / "protect.json", result)
    if kept is not None:
        kept.unlink(missing_ok=True)
    return result


def _check(subject: Subject, sets: DataSets, config: ProtectConfig) -> None:
    if not subject.classifies:
        raise ConfigError(
            "the target has no cloud that answers with classes, so nothing says what the noise costs; give both "
            "halves, such as encoder.onnx,decoder.onnx"
        )
    if config.retune_cloud and not _weights(subject.model.cloud):
        raise ConfigError("this cloud has no weights that can be trained; leave --retune-cloud out")
    if len(sets.test) < 16 or len(sets.train) < 16:
        raise ConfigError(
            f"{len(sets.train)} training and {len(sets.test)} test images are too few to seek noise on; give 16 or more"
        )


def _chosen(lines: Sequence[dict[str, Any]]) -> int:
    """Of the shapes without bare directions that are identified as seldom as any, the one that leaves most error."""
    eligible = [line for line in lines if not line["singular"]]
    least = min(eligible, key=lambda line: line["identified"])
    near = [line for line in eligible if line["identified"] <= least["identified"] + least["identified_error"]]
    return lines.index(max(near, key=lambda line: line["error"]))


class _Search:
    """The frozen model, the images that noise is sought on and those that judge it, and what was measured so far.

    Attributes:
        clean, floor: accuracy on the validation images without noise, and the least that noise has to keep.
        attacker, judged, known: images, and what the model makes of the attacker's.
        images: how many of each kind.
    """

    def __init__(
        self, subject: Subject, sets: DataSets, kept: Path | None, config: ProtectConfig, tell: Callable[[str], object]
    ) -> None:
        self._subject, self._model, self._config, self._tell = subject, subject.model, config, tell
        order = torch.randperm(len(sets.test), generator=generator(config.seed, "protect-validation"))
        validation, judged = (sets.test.subset(half.tolist()) for half in order.tensor_split([len(order) // 2]))
        self.attacker = _at_most(sets.train, config.attacker_images, config)
        self.judged = _at_most(judged, config.judged_images, config)
        self.images = {"attacker": len(self.attacker), "validation": len(validation), "judged": len(self.judged)}
        tell("features")
        self.known, self._sought, self._judging = (
            _data(self._model, part, sets.labelled) for part in (self.attacker, validation, self.judged)
        )
        self._unit = unit_of(self.known.features)
        self.clean = self._accuracy(Noise(), self._model.cloud, self._sought)
        self.floor = self.clean - config.lose_at_most / 100
        data = [part.fingerprint() for part in (sets.train, sets.test)]
        key = {"target": subject.digest, "data": data, "labelled": sets.labelled, "config": vars(config)}
        self._trial = _Trials(kept, key)

    def sensitivity(self) -> Tensor | None:
        """Rows of `scores`, at features with the white noise that keeps the accuracy.

        Raises:
            ConfigError: no noise does.
        """
        white = self._strongest_kept(WHITE)
        if white is None:
            raise ConfigError(
                f"no noise keeps an accuracy of {self.floor:.2%} (without noise {self.clean:.2%}): allow to lose more "
                "with --lose-at-most, or retune the cloud with --retune-cloud"
            )
        self._tell("sensitivity of the cloud")
        source = generator(self._config.seed, "protect-fisher")
        some = _with_noise(self._model, white.noise).channel.release(self.known.features[:_FISHER], source)
        return scores(self._model.cloud, some, self._config.seed)

    def tuned(self, shape: Shape) -> _Strength | None:
        """The strongest noise of a shape, with a cloud that was retuned for it if that is asked for."""
        self._tell(f"strength of {shape.name} noise")
        best = self._strongest_kept(shape)
        for _ in range(_TUNED if best is not None and self._config.retune_cloud else 0):
            assert best is not None
            again = self._strongest(shape, self._retuned(best.cloud, shape.at(_ABOVE * best.strength)))
            best = again if again is not None and again.strength > best.strength else best
        return best

    def line(self, found: _Strength) -> dict[str, Any]:
        """A shape: what it costs, what it leaves the attackers in closed form, and what is certified."""
        self._tell(f"attacks on {found.shape.name} noise")
        # By its strength too: that of a retuned cloud is sought anew.
        return dict(self._trial(f"attacks on {found.shape.name} {found.strength}", partial(self._measured, found)))

    def curve(self, found: _Strength, line: dict[str, Any]) -> list[dict[str, float]]:
        """Accuracy and error at this strength and around it, after a trained attacker has been added to its line."""
        if self._config.decoder_epochs:
            self._tell(f"a trained attacker on {found.shape.name} noise")
            decoder = DecoderConfig(epochs=self._config.decoder_epochs, width=32, blocks=4, seed=self._config.seed)
            name = f"decoder on {found.shape.name} {found.strength}"
            line |= self._trial(name, partial(self._attacked, found, [decoder], line["attacks"]))
        points = [found._replace(strength=by * found.strength) for by in _AROUND]
        around = [self._trial(f"curve of {at.shape.name} {at.strength}", partial(self._cost, at)) for at in points]
        shown = ({name: at[name] for name in ("accuracy", "error", "noise_std")} for at in (line, *around))
        return sorted(shown, key=lambda at: at["error"])

    def _accuracy(self, noise: Noise, cloud: nn.Module, data: _Data) -> float:
        """On clean features that are known: only channel and cloud run, with the same noise numbers every time."""
        channel, right, source = _with_noise(self._model, noise).channel, 0, generator(0, "protect-accuracy")
        draws = _DRAWS if noise.rms > 0 or channel.stochastic_transforms else 1
        with evaluating(cloud):
            for _ in range(draws):
                for z_hat, labels in zip(data.features.split(512), data.labels.split(512), strict=True):
                    right += int((cloud(channel.release(z_hat, source)).argmax(1) == labels).sum())
        return right / (draws * len(data.labels))

    def _strongest_kept(self, shape: Shape) -> _Strength | None:
        """`_strongest` with the cloud as it was, measured once."""

        def measure() -> list[float] | None:
            best = self._strongest(shape, self._model.cloud)
            return None if best is None else [best.strength, best.accuracy]

        found = self._trial(f"strength of {shape.name}", measure)
        return None if found is None else _Strength(shape, found[0], self._model.cloud, found[1])

    def _strongest(self, shape: Shape, cloud: nn.Module) -> _Strength | None:
        """The strongest noise of a shape that keeps the accuracy, by bisection; None where the least costs too much."""
        low, high = self._unit / _RANGE, self._unit * _RANGE
        best = self._accuracy(shape.at(low), cloud, self._sought)
        if best < self.floor:
            return None
        top = self._accuracy(shape.at(high), cloud, self._sought)
        if top >= self.floor:
            return _Strength(shape, high, cloud, top)
        for _ in range(_STEPS):
            middle = (low * high) ** 0.5
            reached = self._accuracy(shape.at(middle), cloud, self._sought)
            if reached >= self.floor:
                low, best = middle, reached
            else:
                high = middle
        return _Strength(shape, low, cloud, best)

    def _retuned(self, cloud: nn.Module, noise: Noise) -> nn.Module:
        """A copy of the cloud, trained on noisy features with its statistics as they are."""
        tuned = copy.deepcopy(cloud)
        weights = _weights(tuned)
        for value in weights:
            value.requires_grad_()
        source, adam = generator(self._config.seed, "protect-tuning"), torch.optim.Adam(weights, _RATE)
        channel, data = _with_noise(self._model, noise).channel, self.known
        with evaluating(tuned, gradients=True):
            for _ in range(_PASSES):
                for rows in torch.randperm(len(data.labels), generator=source).split(_BATCH):
                    z = channel.release(data.features[rows], source)
                    adam.zero_grad(set_to_none=True)
                    nn.functional.cross_entropy(tuned(z), data.labels[rows]).backward()
                    adam.step()
        return tuned.requires_grad_(False)

    def _measured(self, found: _Strength) -> dict[str, Any]:
        noise, model = found.noise, _with_noise(self._model, found.noise, found.cloud)
        leakage = measure_leakage(model, self.judged, seed=self._config.seed, quick=True)
        return {
            "name": found.shape.name,
            "meaning": found.shape.meaning,
            "strength": found.strength,
            "smallest": noise.smallest,
            "singular": noise.singular,
            "accuracy_validation": found.accuracy,
            "identified": leakage.identified,
            "identified_error": leakage.identified_error,
            "candidates": leakage.candidates,
            "information": leakage.information,
            "identified_at_most": leakage.at_most,
        } | self._cost(found)

    def _cost(self, found: _Strength) -> dict[str, Any]:
        """Accuracy, and the error that the attackers in closed form make."""
        accuracy = self._accuracy(found.noise, found.cloud, self._judging)
        attacked = self._attacked(found, with_closed_forms(seed=self._config.seed), {})
        return {"noise_std": found.noise.rms, "accuracy": accuracy, **attacked}

    def _attacked(self, found: _Strength, configs: Sequence[Any], known: dict[str, Any]) -> dict[str, Any]:
        """What these attacks and the known ones reach, and the error that the strongest of all leaves."""
        protected = _with_noise(self._model, found.noise, found.cloud)
        observer, figures = Observer(protected, self.attacker), dict(known)
        for one in configs:
            attack = build(one).fit(observer)
            figures[name_of(one)] = invert(attack, protected, self.judged, seed=self._config.seed).means()
        name = strongest_attack({name: one["mse"] for name, one in figures.items()})
        best = figures[name]
        return {"attacks": figures, "strongest": name, "error": best["mse"], "error_spread": best["mse_error"]}


def _at_most(images: ImageSet, most: int, config: ProtectConfig) -> ImageSet:
    if len(images) <= most:
        return images
    return images.subset(torch.randperm(len(images), generator=generator(config.seed, "protect"))[:most].tolist())


def _with_noise(model: SplitModel, noise: Noise, cloud: nn.Module | None = None) -> SplitModel:
    channel = copy.copy(model.channel)
    channel.noise = noise
    return SplitModel(model.edge, channel, model.cloud if cloud is None else cloud)


def _data(model: SplitModel, images: ImageSet, labelled: bool) -> _Data:
    flat = collect_features(model, images.images)
    with evaluating(model):
        features = flat.reshape(len(flat), *model.features(images.float(torch.arange(1))).shape[1:])
        if labelled:
            return _Data(features, images.labels)
        return _Data(features, torch.cat([model.cloud(part).argmax(1) for part in features.split(256)]))


def _weights(cloud: nn.Module) -> list[nn.Parameter]:
    return [value for value in cloud.parameters() if value.is_floating_point() and value.numel() > 1]
