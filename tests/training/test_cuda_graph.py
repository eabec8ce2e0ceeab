"""The step as a GPU replays it, on a CPU: the kernels of one step repeated with the numbers and addresses it had."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato import data, torch_utils
from sfumato.cuda_graph import Replay
from sfumato.errors import SfumatoError, SfumatoWarning
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model

CONFIG = TrainConfig(
    data="digits",
    epochs=4,
    batch_size=16,
    lr=0.05,
    noise_std=0.1,
    cem=True,
    update="epoch",
    lam=0.5,
    hold_out=0.0,
    watch=False,
    rotation=10.0,
    device="cpu",
)
WAITING = ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero", "_assert_async", "bincount", "unique")


class Tape(TorchDispatchMode):
    """Notes every kernel with its arguments, like a graph capture, and refuses those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func)
        if any(word in name for word in WAITING):
            raise AssertionError(f"a step waits for the device: {name}")
        out = func(*args, **kwargs)
        self.notes.append((func, args, kwargs, out))
        return out

    def play(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():  # kernels alone, as a graph has them
            for func, args, kwargs, out in self.notes:
                again = func(*args, **kwargs)
                for old, new in zip(tensors(out), tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr() and old.numel():
                        old.copy_(new)


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [one for part in value for one in tensors(part)]
    return []


class Taped(Replay):
    """A `Replay` whose graph is a tape."""

    taped: Tape | None = None

    def __call__(self) -> None:
        if self.taped is not None:
            self.taped.play()
            self.replays += 1
        elif self._warm < 3:
            self._warm += 1
            self._work()
        else:
            self.taped = Tape()
            with self.taped, torch.autograd.set_multithreading_enabled(False):
                self._work()

    def forget(self) -> None:
        super().forget()
        self.taped = None


def trainer(config: TrainConfig, *, taped: bool) -> Trainer:
    train = data.limit(data.load("digits", seed=0).train, 96, 0)
    defenses = build_defenses(config, train.num_classes)
    one = Trainer(build_model(config, train, defenses), defenses, train, None, config)
    if taped:
        one._whole_step = Taped(one._whole_step._work, torch.device("cpu"), tuple(one._random.values()))
    return one


VARIANTS = {
    "plain": {"cem": False},
    "cem": {},
    "many clusters": {"clusters_per_class": 5, "refresh_every": 2},
    "diagonal": {"covariance": "diagonal"},
    "as published": {"scaling": "as_published", "covariance": "spherical"},
    "literal": {"scaling": "literal", "lam": 4.0},
    "distcorr": {"defense": "distcorr"},
    "dropout": {"defense": "dropout"},
    "label_smoothing": {"defense": "label_smoothing"},
    "ressfl": {"defense": "ressfl", "defense_options": {"width": 4, "blocks": 1}},
    "quantised": {"quantize_bits": 6, "clip_norm": 2.0},
    "parts": {"micro_batch": 5},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore::sfumato.errors.SfumatoWarning")
def test_replayed_steps_train_like_computed_ones(name, monkeypatch):
    monkeypatch.setattr(torch_utils, "_AT_HAND", set())  # take the paths of a GPU
    config = replace(CONFIG, **VARIANTS[name])
    computed, replayed = trainer(config, taped=False), trainer(config, taped=True)
    assert all(defense.replayable for defense in replayed.defenses)
    for one in (computed, replayed):
        one.run()
    assert replayed._whole_step.replays >= 10
    for (key, ours), theirs in zip(
        replayed.model.state_dict().items(), computed.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4), key
    assert replayed.history[-1]["loss"] == pytest.approx(computed.history[-1]["loss"], rel=1e-3)


@pytest.mark.filterwarnings("ignore::sfumato.errors.SfumatoWarning")
def test_the_paths_of_a_gpu_and_of_a_cpu_train_alike(monkeypatch):
    config = replace(CONFIG, epochs=2)
    on_cpu = trainer(config, taped=False)
    on_cpu.run()
    monkeypatch.setattr(torch_utils, "_AT_HAND", set())
    as_gpu = trainer(config, taped=False)
    as_gpu.run()
    for ours, theirs in zip(on_cpu.model.state_dict().values(), as_gpu.model.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_number_that_python_baked_into_the_step_is_noticed(monkeypatch):
    """The test above can fail: a rate read as a Python number stays what it was when the step was captured."""
    monkeypatch.setattr(torch_utils, "_AT_HAND", set())
    config = replace(CONFIG, cem=False)
    computed, replayed = trainer(config, taped=False), trainer(config, taped=True)
    optimizer = replayed._optimizer

    def baked() -> torch.optim.Optimizer:
        made = optimizer()
        for group in made.param_groups:
            group["lr"] = Number(group["lr"])
        return made

    class Number(float):
        def __new__(cls, value):
            return super().__new__(cls, float(value))

        def fill_(self, value: float) -> None:
            replayed.optimizer.param_groups[0]["lr"] = Number(value)

    replayed.optimizer = baked()
    for one in (computed, replayed):
        one.run()
    pairs = zip(replayed.model.state_dict().values(), computed.model.state_dict().values(), strict=True)
    assert not all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in pairs)


def test_pruning_and_the_running_update_are_computed_anew():
    running = trainer(replace(CONFIG, update="running"), taped=False)
    assert not all(defense.replayable for defense in running.defenses)
    pruned = trainer(replace(CONFIG, defense="patrol", defense_options={"width": 4, "blocks": 1}), taped=True)
    forgotten = []
    pruned._whole_step.forget = lambda: forgotten.append(pruned._epoch)  # type: ignore[method-assign]
    pruned.begin_epoch(0)
    forgotten.clear()
    pruned.begin_epoch(5)
    assert forgotten


def test_parts_of_a_batch_sum_to_its_gradient():
    config = replace(CONFIG, epochs=1, model="digits", cem=False, noise_std=0.0, augment=False, batch_size=96)
    whole, parts = trainer(config, taped=False), trainer(replace(config, micro_batch=7), taped=False)
    for one in (whole, parts):
        one.begin_epoch(0)
        one.model.eval()  # batch normalisation sees the parts, by design
        one.step(0, 0, torch.arange(96))
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sfumato.errors.SfumatoWarning")  # three samples per cluster, and chance
def test_out_of_memory_names_the_setting_and_resumes_with_it(tmp_path, monkeypatch):
    state = tmp_path / "state"
    config = replace(CONFIG, checkpoint_seconds=0.0)
    one = trainer(config, taped=False)
    compute = one._compute
    calls = []

    def fail(indices: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) == 9:
            raise torch.OutOfMemoryError("no memory")
        compute(indices)

    monkeypatch.setattr(one, "_compute", fail)
    one._whole_step = Replay(lambda: one._compute(one._indices), torch.device("cpu"))
    with pytest.raises(SfumatoError, match="ran out of memory in epoch 1.*--micro-batch 8"):
        one.run(state)
    again = trainer(replace(config, micro_batch=8), taped=False)
    done = []
    again.run(state, on_step=lambda step, _: done.append(step))
    assert done[0] == 9


def test_a_failed_capture_goes_on_without(monkeypatch):
    done = []
    one = Replay(lambda: done.append(1), torch.device("cuda"))
    monkeypatch.setattr(one, "_on_a_side_stream", lambda: done.append(0))

    def refuse() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: refuse())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    for _ in range(3):
        one()
    with pytest.warns(SfumatoWarning, match="cannot be captured.*not permitted when stream is capturing\\)"):
        one()
    one()
    assert done == [0, 0, 0, 1, 1]
