from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from audit_cases import SUITE, tiny_subject

from sfumato.attacks import ATTACKS
from sfumato.audit.context import TimeBudget, make_context
from sfumato.audit.folder import AuditFolder
from sfumato.audit.suite import Piece, affordable, config_of, load_suite, possible
from sfumato.data import ImageSet
from sfumato.errors import CheckpointError


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    subject = tiny_subject()
    folder = AuditFolder(tmp_path_factory.mktemp("audit"), {})
    return make_context(subject, subject.sets, gradients=True, device=torch.device("cpu"), seed=0, folder=folder)


def test_the_suite_names_attacks_and_settings_that_exist(context):
    pieces = load_suite()
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert {"ridge", "nearest", "decoder"} <= {piece.name for piece in pieces}
    for piece in pieces:
        if piece.attack in ATTACKS:
            config_of(piece, context)
        if piece.epochs is not None:
            assert 0 < piece.epochs[0] <= piece.epochs[1]
    always = {piece.name for piece in pieces if piece.minutes == 0}
    assert always == {"ridge", "nearest", "cloud:ridge", "cloud:nearest", "decoder"}
    assert pieces[-1].name == "decoder"  # what others leave over is its own


def test_what_the_subject_or_the_minutes_do_not_allow_is_named(context):
    pieces = (
        Piece("a", "attack", "ridge", 1),
        Piece("b", "attack", "ridge", 1, needs=("other",)),
        Piece("c", "attack", "ridge", 1, 5),
        Piece("d", "attack", "ridge", 1, options={"values": 15}),
    )
    kept, dropped = possible(pieces, context, 2.0)
    assert [piece.name for piece in kept] == ["a"]
    assert [(one.what, one.why, one.left_out) for one in dropped] == [
        ("b", "no images of another origin were given; give --other", False),
        ("c", "too little time: give --minutes 5 or more", True),
        ("d", "an image has 16 values, and beyond 15 it takes too long; give --size", True),
    ]
    assert [piece.name for piece in possible(pieces, context, 5.0)[0]] == ["a", "c"]


def test_a_search_affords_images_by_its_time(context):
    piece = SUITE[-1]
    assert piece.attack == "optimization"
    assert [affordable(piece, context, seconds) for seconds in (0.0, 1e-6, 1000.0)] == [0, 0, 9]


def test_small_sets_need_more_passes(context):
    piece = Piece("decoder", "attack", "decoder", 1, settings={"batch_size": 64}, epochs=(10, 50))
    assert config_of(piece, context).epochs == 50
    assert config_of(replace(piece, steps=500), context).epochs == 100  # of 5 batches each


def test_a_ledger_adds_up_over_calls():
    budget = TimeBudget(100.0, spent=40.0, reserve=10.0)
    assert budget.spent == pytest.approx(40.0, abs=1.0)
    assert budget.left == pytest.approx(50.0, abs=1.0)
    assert TimeBudget(10.0, spent=40.0, reserve=1.0).left == 0.0


def test_a_folder_keeps_what_was_decided_and_refuses_another_audit(tmp_path):
    folder = AuditFolder(tmp_path, {"target": "a", "seed": 3})
    assert folder.decide("x", {"epochs": 4}) == {"epochs": 4}
    again = AuditFolder(tmp_path, {"target": "a", "seed": 3})
    assert again.decide("x", {"epochs": 9}) == {"epochs": 4}
    with pytest.raises(CheckpointError, match="holds an audit with another seed; choose another --out"):
        AuditFolder(tmp_path, {"target": "a", "seed": 4})
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"plan\.json is damaged"):
        AuditFolder(tmp_path, {"target": "a", "seed": 3})


def test_a_piece_that_is_done_again_keeps_what_it_had_until_then(tmp_path):
    folder = AuditFolder(tmp_path, {})
    assert not folder.extend(2.0)
    folder.decide("x", {"epochs": 4})
    folder.finish("x", {"error": 1})
    assert not folder.extend(2.0)
    assert not folder.extend(1.0)
    assert folder.extend(5.0)
    folder.reopen("x")
    again = AuditFolder(tmp_path, {})
    assert (again.minutes, again.finished("x"), again.decided("x")) == (5.0, None, None)
    again.keep("x")
    assert again.finished("x") == {"error": 1}
    again.reopen("x")
    again.finish("x", {"error": 2})
    assert again.finished("x") == {"error": 2}


@pytest.mark.parametrize(("side", "count", "size"), [(224, 2, 2), (32, 2, 64), (8, 10_000, 256), (64, 10_000, 28)])
def test_batches_of_large_images_are_small(side, count, size):
    """A layer of 64 channels at 224x224 holds 3.2 million values for each image, and there are nine blocks."""
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, 3, side, side)
    train = ImageSet(images, torch.zeros(count, dtype=torch.int64), ("any",))
    context = SimpleNamespace(seed=0, sets=SimpleNamespace(train=train))
    assert config_of(Piece("d", "attack", "decoder", 1), context).batch_size == size
