import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data import ImageSet, folds, hold_out, limit
from sfumato.errors import ConfigError, DataError


def make(counts):
    """One pixel per image that is the image's position; classes mixed in a fixed random order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]
    images = torch.arange(len(labels)).reshape(-1, 1, 1, 1)
    pixels = torch.cat([images // 256, images % 256], dim=3).to(torch.uint8)
    return ImageSet(pixels, labels, tuple(f"class{i}" for i in range(len(counts))))


def positions(data):
    return [int(p[0, 0, 0]) * 256 + int(p[0, 0, 1]) for p in data.images]


def per_class(data):
    return data.labels.bincount(minlength=data.num_classes).tolist()


class_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0)


def test_hold_out_takes_the_share_of_each_class():
    fit, held = hold_out(make([50, 30, 20]), 0.1, seed=0)
    assert per_class(held) == [5, 3, 2]
    assert per_class(fit) == [45, 27, 18]


@settings(max_examples=30, deadline=None)
@given(counts=class_sizes, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 10))
def test_hold_out_is_a_stratified_partition_that_leaves_every_class(counts, fraction, seed):
    data = make(counts)
    spare = sum(max(0, n - 1) for n in counts)
    if spare == 0:
        with pytest.raises(DataError, match="too few to hold any out"):
            hold_out(data, fraction, seed)
        return
    fit, held = hold_out(data, fraction, seed)
    assert sorted(positions(fit) + positions(held)) == list(range(len(data)))
    assert len(held) == min(max(1, round(fraction * len(data))), spare)
    assert all(left >= 1 for left, n in zip(per_class(fit), counts, strict=True) if n)
    if all(n > 2 for n in counts) and fraction < 0.5:
        shares = [abs(h - fraction * n) for h, n in zip(per_class(held), counts, strict=True)]
        assert max(shares) <= 1.5


def test_hold_out_is_decided_by_the_seed_alone():
    data = make([20, 20])
    torch.manual_seed(1)
    first = positions(hold_out(data, 0.25, seed=3)[1])
    torch.manual_seed(2)
    assert positions(hold_out(data, 0.25, seed=3)[1]) == first
    assert positions(hold_out(data, 0.25, seed=4)[1]) != first
    assert first == sorted(first)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_hold_out_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ConfigError, match="fraction is .*; give a (fraction between 0 and 1|finite number)"):
        hold_out(make([4, 4]), fraction, 0)


def test_limit_balances_the_classes():
    assert per_class(limit(make([100, 50, 5]), 45, seed=0)) == [20, 20, 5]
    assert sorted(per_class(limit(make([10, 10, 10]), 8, seed=0))) == [2, 3, 3]


@settings(max_examples=30, deadline=None)
@given(counts=class_sizes, n=st.integers(1, 240), seed=st.integers(0, 10))
def test_limit_is_exact_balanced_and_nested(counts, n, seed):
    data = make(counts)
    part = limit(data, n, seed)
    assert len(part) == min(n, len(data))
    taken = per_class(part)
    full = [t for t, c in zip(taken, counts, strict=True) if t < c]  # classes that could have given more
    assert not full or max(taken) <= min(full) + 1
    assert positions(part) == sorted(set(positions(part)))
    assert set(positions(limit(data, max(1, n // 2), seed))) <= set(positions(part))


def test_limit_refuses_nothing():
    with pytest.raises(ConfigError, match="the limit is 0; give the number of images to keep"):
        limit(make([4]), 0, 0)


@settings(max_examples=30, deadline=None)
@given(counts=class_sizes, k=st.integers(2, 7), seed=st.integers(0, 10))
def test_folds_partition_and_differ_by_at_most_one(counts, k, seed):
    data = make(counts)
    if k > len(data):
        with pytest.raises(ConfigError, match="impossible"):
            folds(data, k, seed)
        return
    parts = folds(data, k, seed)
    assert len(parts) == k
    assert sorted(p for _, test in parts for p in positions(test)) == list(range(len(data)))
    for fit, test in parts:
        assert sorted(positions(fit) + positions(test)) == list(range(len(data)))
    for column in zip(*(per_class(test) for _, test in parts), strict=True):
        assert max(column) - min(column) <= 1
    sizes = [len(test) for _, test in parts]
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed_and_need_two():
    data = make([20, 20])
    assert positions(folds(data, 4, 0)[0][1]) == positions(folds(data, 4, 0)[0][1])
    assert positions(folds(data, 4, 0)[0][1]) != positions(folds(data, 4, 1)[0][1])
    with pytest.raises(ConfigError, match=r"1 folds of 40 images are impossible; give 2 \.\. 40 folds"):
        folds(data, 1, 0)


@pytest.mark.parametrize("wrong", [None, "5", 2.5, float("inf"), [1]])
def test_settings_of_another_type_are_refused(wrong):
    data = make([4, 4])
    for part in (limit, folds, *[hold_out] * (not isinstance(wrong, float))):
        with pytest.raises(ConfigError, match="; give a"):
            part(data, wrong, 0)
