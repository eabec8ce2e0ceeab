from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from audit_cases import SUITE, tiny_subject

from sfumato.attacks import ATTACKS
from sfumato.audit.context import make_context
from sfumato.audit.folder import AuditFolder
from sfumato.audit.plan import TimeBudget, choose, fits
from sfumato.audit.suite import Piece, affordable, load_suite, runnable
from sfumato.audit.training import Cost, config_of, decide, decide_search, measure_cost, of_piece, searches
from sfumato.data import ImageSet
from sfumato.errors import CheckpointError


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    subject = tiny_subject()
    folder = AuditFolder(tmp_path_factory.mktemp("audit"), {})
    return make_context(subject, subject.sets, gradients=True, device=torch.device("cpu"), seed=0, folder=folder)


def test_the_suite_names_attacks_and_settings_that_exist(context):
    pieces = load_suite()
    assert {"ridge", "nearest", "decoder"} <= {piece.name for piece in pieces}
    for piece in pieces:
        if piece.attack in ATTACKS:
            config_of(piece, context, {})
        if piece.epochs is not None:
            assert 0 < piece.epochs[0] <= piece.epochs[1]
    assert all(piece.rank > 0 for piece in pieces if piece.kind != "attack")


def test_needs_that_are_not_met_are_named():
    pieces = (Piece("a", "attack", "ridge", 1, 0), Piece("b", "attack", "ridge", 1, 0, needs=("noise",)))
    kept, dropped = runnable(pieces, has={"noise": "there is none"})
    assert [piece.name for piece in kept] == ["a"]
    assert [(one.what, one.why) for one in dropped] == [("b", "there is none")]
    assert runnable(pieces, has={"noise": None})[1] == []


def test_what_does_not_fit_is_left_out_highest_rank_first():
    pieces = tuple(Piece(str(rank), "attack", "decoder", 1, rank, epochs=(10, 20)) for rank in range(4))
    fewest = {piece.name: 10.0 for piece in pieces}
    kept, dropped = affordable(pieces, 40.0, fewest)
    assert len(kept) == 4
    kept, dropped = affordable(pieces, 25.0, fewest)
    assert [piece.name for piece in kept] == ["0", "1"]
    assert [one.what for one in dropped] == ["3", "2"]
    assert dropped[0].why == "too little time: give about --minutes 1 or more"
    kept, _ = affordable(pieces, 0.1, fewest)
    assert [piece.name for piece in kept] == ["0"]  # the first always runs


def test_what_would_fit_gives_way_to_better_ranked_pieces():
    pieces = (
        Piece("first", "attack", "decoder", 1, 0, epochs=(1, 2)),
        Piece("strong", "attack", "strong", 1, 2, epochs=(1, 2)),
        Piece("search", "attack", "optimization", 1, 4),
        Piece("cheap", "attack", "gan", 1, 5, epochs=(1, 2)),
    )
    kept, dropped = affordable(pieces, 30.0, {"first": 1.0, "strong": 14.0, "cheap": 1.0})
    assert [piece.name for piece in kept] == ["first", "strong"]
    assert [one.what for one in dropped] == ["cheap", "search"]
    assert dropped[1].why == "too little time: it gives way to better ranked attacks"


def test_a_search_affords_images_by_its_time(context):
    piece = SUITE[-1]
    assert piece.attack == "optimization"
    assert searches(piece)
    assert not searches(SUITE[0])
    assert decide_search(piece, context, 0.0) == {"shown": 0}
    assert decide_search(piece, context, 1000.0) == {"shown": 9}
    some = decide_search(replace(piece, images=None, settings={**piece.settings, "iterations": 400}), context, 30.0)
    assert 0 <= some["shown"] <= 60


def test_closed_forms_that_take_too_long_are_left_out(context):
    piece = Piece("few", "knowledge", "ridge", 1, 2, options={"shares": [1, 0.5]})
    assert choose(piece, context, 10.0, {}, 1.0, {"ridge": 13.0}) == {}
    assert choose(piece, context, 10.0, {}, 1.0, {"ridge": 14.0})["skip"].startswith("too little time")
    assert choose(replace(piece, rank=0), context, 10.0, {}, 1.0, {"ridge": 99.0}) == {}
    repeats = Piece("r", "queries", "ridge", 1, 2, options={"queries": [1, 4], "train": 150})
    assert fits(repeats, context) == pytest.approx(1.0)
    assert fits(SUITE[0], context) == 1.0


def test_epochs_follow_from_the_time(context):
    piece = Piece("decoder", "attack", "decoder", 1, 0, settings={"batch_size": 64}, epochs=(10, 50))
    assert decide(piece, context, 22.0, Cost(1.0, 2.0)) == {"epochs": 20, "images": 300}
    assert decide(piece, context, 1000.0, Cost(1.0, 2.0)) == {"epochs": 50, "images": 300}
    # Too little for ten epochs: ten epochs of fewer images, here of the fewest worth a batch or two.
    assert decide(piece, context, 8.0, Cost(1.0, 2.0)) == {"epochs": 10, "images": 180}
    assert decide(piece, context, 0.0, Cost(1.0, 2.0)) == {"epochs": 10, "images": 128}
    # Small sets need more passes: 9,000 steps of 5 batches each.
    more = Piece("decoder", "attack", "decoder", 1, 0, settings={"batch_size": 64}, epochs=(10, 50), steps=500)
    assert decide(more, context, 1000.0, Cost(1.0, 2.0))["epochs"] == 100
    shares = Piece("few", "knowledge", "decoder", 1, 0, options={"shares": [0.5, 0.1]})
    assert of_piece(shares, Cost(10.0, 4.0)) == pytest.approx((6.0, 4.0))


def test_a_cost_is_measured(context):
    cost = measure_cost(SUITE[5], context, 600)
    assert 0 < cost.epoch < 20
    assert 0 < cost.once < 20


def test_a_ledger_adds_up_over_calls():
    budget = TimeBudget(100.0, spent=40.0, reserve=10.0)
    assert budget.spent == pytest.approx(40.0, abs=1.0)
    assert budget.left == pytest.approx(50.0, abs=1.0)
    assert budget.allowance(1.0, [1.0, 4.0]) == pytest.approx(10.0, abs=0.5)
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


def test_a_busy_moment_makes_no_epoch_dearer_and_a_slow_start_is_paid_once(context, monkeypatch):
    monkeypatch.setattr("sfumato.audit.training._ends", lambda *_: [10.0, 12.0, 30.0, 31.0])
    monkeypatch.setattr("sfumato.audit.training.invert_released", lambda *_, **__: None)
    cost = measure_cost(SUITE[5], context, 600)
    assert cost.once == pytest.approx(9 * cost.epoch, rel=1e-3)  # the fastest took 1 s, so 9 s went before the first
    assert cost.epoch == pytest.approx(300 / min(300, round(2 * 64 / 0.9)))
    least = 31.0 * SUITE[5].epochs[0]  # of the fewest epochs, were each like the one that is thrown away
    assert measure_cost(SUITE[5], context, least - 1) == least


@pytest.mark.parametrize(("side", "count", "size"), [(224, 2, 2), (32, 2, 64), (8, 10_000, 256), (64, 10_000, 28)])
def test_batches_of_large_images_are_small(side, count, size):
    """A layer of 64 channels at 224x224 holds 3.2 million values for each image, and there are nine blocks."""
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, 3, side, side)
    train = ImageSet(images, torch.zeros(count, dtype=torch.int64), ("any",))
    context = SimpleNamespace(seed=0, sets=SimpleNamespace(train=train))
    assert config_of(Piece("d", "attack", "decoder", 1, 0), context, {}).batch_size == size
