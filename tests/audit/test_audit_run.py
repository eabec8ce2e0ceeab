"""What one audit finds, and what it says."""

import re
from dataclasses import replace

import jsonschema
import pytest
from audit_cases import SUITE, audit, tiny_subject

from sfumato.audit import conclude, judge, parse_threshold, run_audit, schema
from sfumato.audit.context import TimeBudget
from sfumato.audit.suite import Piece
from sfumato.audit.thresholds import METRICS
from sfumato.data import ImageSet
from sfumato.errors import ConfigError
from sfumato.report.audit import write_audit_report
from sfumato.split import Channel, SplitModel


def test_ridge_reaches_the_exact_minimal_error_and_nobody_beats_it(audited):
    result = audited[1].result
    exact = next(one for one in result["bounds"] if one["name"] == "exact")["value"]
    trees = next(one for one in result["bounds"] if one["name"] == "van_trees")
    ridge = next(one for one in result["attacks"] if one["name"] == "ridge")["test"]["mse"]
    assert trees["value"] == pytest.approx(exact, rel=0.02)
    assert trees["gates"]
    assert abs(ridge["mean"] - exact) < 3 * ridge["error"] + 0.05 * exact
    assert result["consistency"] == {"checked": ["exact", "van_trees", "identified_at_most"], "violations": []}


def test_a_bound_that_is_too_high_fails_loudly(tmp_path):
    lying = replace(tiny_subject(), exact_mse=1.0)
    result = audit(tmp_path, lying, suite=SUITE[:1]).result
    assert {one["bound"] for one in result["consistency"]["violations"]} == {"exact"}
    assert result["verdict"]["notes"][0].startswith("BROKEN: the mean test error of the ")


def test_which_image_was_sent_stands_first_and_can_be_a_gate(audited):
    result = audited[1].result
    leakage = result["leakage"]
    assert leakage["candidates"] == 60
    assert 1 / 60 < leakage["identified"] <= leakage["identified_at_most"]
    assert leakage["clipped_at_most"] is None
    headline = result["verdict"]["headline"]
    assert headline.startswith("Of 60 images an attacker names the right one in ")
    assert headline.index("no attacker can exceed") < headline.index("The worst-served 5 % of unseen images are recon")
    assert result["metrics"]["identified"] == leakage["identified"]
    held_out = next(one for one in result["bounds"] if one["name"] == "held_out")
    assert held_out["value"] == leakage["information"]
    (line,) = judge([parse_threshold("identified > 0.001")], result["metrics"])
    assert line["holds"]


def test_without_noise_no_certificate_is_below_everybody(tmp_path):
    noisy = tiny_subject()
    silent = SplitModel(noisy.model.edge, Channel(), noisy.model.cloud)
    subject = replace(noisy, model=silent, prior=None, exact_mse=None)
    result = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=SUITE[:1]).result
    assert result["leakage"]["identified"] == 1
    assert result["leakage"]["identified_at_most"] is None
    assert result["metrics"]["identified_at_most"] == 1
    headline = result["verdict"]["headline"]
    assert "without noise in every direction nothing limits a better attacker" in headline
    assert headline.startswith("Nothing is lost on the way: the device adds no noise and rounds to no levels")
    levels = replace(subject, model=SplitModel(noisy.model.edge, Channel(quantize_bits=8), noisy.model.cloud))
    result = run_audit(levels, subject.sets, tmp_path / "levels", minutes=1.0, suite=SUITE[:1]).result
    assert "Nothing is lost" not in result["verdict"]["headline"]


def test_fresh_noise_averages_away_and_memoised_noise_does_not(audited):
    by_name = {one["name"]: one["points"] for one in audited[1].result["queries"]}
    one, sixteen = (point["mse"]["mean"] for point in by_name["repeats"])
    assert sixteen < 0.8 * one
    first, again = (point["mse"]["mean"] for point in by_name["memoised"])
    assert again == pytest.approx(first, rel=0.02)


def test_fewer_images_make_the_attacker_weaker(audited):
    (sweep,) = audited[1].result["knowledge"]
    assert [point["known"] for point in sweep["points"]] == [300, 30]
    assert sweep["points"][1]["mse"]["mean"] > sweep["points"][0]["mse"]["mean"]


@pytest.mark.usefixtures("quick")
def test_an_attacker_with_other_images_is_weaker_than_one_with_the_training_set(tmp_path):
    subject = tiny_subject()
    dark = ImageSet(subject.sets.train.images // 4, subject.sets.train.labels, subject.sets.train.classes)
    piece = Piece("other", "knowledge", "ridge", 0.2, 1, needs=("other",), options={"words": "other", "other": True})
    suite = (SUITE[0], piece)
    result = run_audit(subject, subject.sets, tmp_path / "with", minutes=1.0, suite=suite, other=dark).result
    own, other = result["knowledge"][0]["points"]
    assert own["label"] == "the training set"
    assert other["known"] == own["known"] == 300
    assert other["mse"]["mean"] > 1.5 * own["mse"]["mean"]
    without = run_audit(subject, subject.sets, tmp_path / "without", minutes=1.0, suite=suite).result
    assert without["knowledge"] == []
    assert "give --other" in next(one["why"] for one in without["not_tested"] if one["what"] == "other")


@pytest.mark.usefixtures("quick")
def test_an_attacker_who_knows_the_noise_is_not_beaten_by_one_who_does_not(tmp_path):
    subject = tiny_subject(noise_std=0.3)
    options = {"words": "noise", "noises": [1, 8], "unknown": [0, 16]}
    suite = (SUITE[0], Piece("noise", "knowledge", "ridge", 0.2, 1, options=options))
    (sweep,) = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=suite).result["knowledge"]
    knows, wrong, unknown = sweep["points"]
    assert unknown["label"] == "takes it for anything from 0 to 16 times"
    assert min(wrong["mse"]["mean"], unknown["mse"]["mean"]) > knows["mse"]["mean"]


def test_what_else_can_be_read(audited):
    probes = {one["name"]: one for one in audited[1].result["probes"]}
    assert set(probes) == {
        f"{what}_{source}"
        for what in ("brightness", "contrast", "asymmetry")  # one class, one channel: nothing to tell apart
        for source in ("feature", "reconstruction")
    }
    assert probes["brightness_feature"]["images"] == 40


def test_a_search_image_by_image_is_tried_on_some(audited):
    search = next(one for one in audited[1].result["attacks"] if one["name"] == "optimization")
    assert search["test"]["images"] == 9
    assert search["history"] == []
    reconstructed = audited[1].reconstructed
    best = audited[1].result["best"]["test"]["mse"]
    assert best != "optimization"  # means over other images are not compared
    same = search["same_images"]
    assert same["attack"] == best
    assert same["mse"] == pytest.approx(float(reconstructed[best].mse[:9].double().mean()), rel=1e-6)
    assert same["gap"] == pytest.approx(search["test"]["mse"]["mean"] - same["mse"], rel=1e-4)


def test_every_metric_of_the_thresholds_is_there(audited):
    metrics = audited[1].result["metrics"]
    assert set(metrics) == set(METRICS)
    attacks = [one for one in audited[1].result["attacks"] if one["test"]["images"] == 60]
    assert metrics["psnr_worst5"] == max(one["test"]["psnr"]["worst5"] for one in attacks)
    assert metrics["mse_mean"] == min(one["test"]["mse"]["mean"] for one in attacks)
    assert metrics["mse_any_mean"] <= metrics["mse_mean"]
    assert metrics["accuracy"] is None
    pessimistic = audited[1].result["pessimistic"]
    assert set(pessimistic) == set(METRICS)
    assert pessimistic["psnr_worst5"] > metrics["psnr_worst5"]
    assert 0 < pessimistic["mse_mean"] < metrics["mse_mean"]
    # The gate is judged there: a limit between the two fails.
    limit = (pessimistic["mse_mean"] + metrics["mse_mean"]) / 2
    assert conclude(audited[1].result, [parse_threshold(f"mse_mean < {limit}")])["verdict"]["outcome"] == "failed"
    assert metrics["left_out"] == 1


def test_what_did_not_run_is_said(audited):
    untested = {one["what"]: one["why"] for one in audited[1].result["not_tested"]}
    assert re.fullmatch(r"too little time: give about --minutes \d+ or more", untested["gan"])
    assert untested["accuracy"] == "the images have no labels"


def test_a_trained_attack_that_a_baseline_beats_has_not_converged(audited):
    attacks = {one["name"]: one for one in audited[1].result["attacks"]}
    assert attacks["decoder"]["test"]["mse"]["mean"] > 1.05 * attacks["ridge"]["test"]["mse"]["mean"]
    assert attacks["decoder"]["converged"] is False
    assert "times that of the ridge baseline" in attacks["decoder"]["reason"]


@pytest.mark.usefixtures("quick")
def test_only_what_was_asked_for_runs(tmp_path):
    subject = tiny_subject()
    only = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=SUITE, only=["ridge", "nearest"],
                     skip=["nearest"]).result  # fmt: skip
    assert [one["name"] for one in only["attacks"]] == ["ridge"]
    untested = {one["what"]: one for one in only["not_tested"]}
    assert untested["nearest"]["why"] == "left out by --skip"
    assert untested["gan"] == {"what": "gan", "why": "left out by --only", "left_out": True}
    assert only["metrics"]["left_out"] == len(SUITE) - 1
    with pytest.raises(ConfigError, match="there is no piece 'rigde'; the pieces of an audit are ridge, nearest"):
        run_audit(subject, subject.sets, tmp_path, suite=SUITE, only=["rigde"])


@pytest.mark.usefixtures("quick")
def test_what_does_not_fit_into_memory_is_declined_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.audit.suite.available_memory", lambda _: 1e5)
    subject = tiny_subject()
    result = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=(SUITE[0], SUITE[5])).result
    why = next(one for one in result["not_tested"] if one["what"] == "decoder")
    assert re.fullmatch(r"it needs about [\d.]+ GB of memory and 0\.0001 GB are free; audit on a larger .*", why["why"])
    assert [one["name"] for one in result["attacks"]] == ["ridge"]


def test_without_noise_nothing_is_provable_and_no_query_is_repeated(tmp_path):
    subject = tiny_subject(noise_std=0.1)
    subject.model.channel.noise_std = 0.0
    bare = replace(subject, exact_mse=None, prior=None)
    result = run_audit(bare, bare.sets, tmp_path, minutes=1.0, suite=SUITE[:4]).result
    assert result["bounds"] == []
    assert result["queries"] == []
    untested = {one["what"]: one["why"] for one in result["not_tested"]}
    assert untested["bounds"].startswith("without noise in every direction")
    assert untested["repeats"].startswith("nothing random is added")
    jsonschema.validate(result, schema())


@pytest.mark.usefixtures("quick")
def test_the_seed_decides(audited, tmp_path):
    result = audit(tmp_path, suite=SUITE[:1], seed=1).result
    ridge = next(one for one in audited[1].result["attacks"] if one["name"] == "ridge")
    assert result["attacks"][0]["test"]["mse"] != ridge["test"]["mse"]


@pytest.mark.usefixtures("quick")
def test_test_images_that_are_training_images_are_counted_first(tmp_path):
    subject = tiny_subject()
    sets = replace(subject.sets, test=subject.sets.train.subset(range(30, 90)))
    result = run_audit(subject, sets, tmp_path, minutes=0.5, suite=SUITE[:1]).result
    assert result["data"]["shared"] == 60
    assert result["verdict"]["headline"].startswith("60 of the 60 test images are training images too")


@pytest.mark.usefixtures("quick")
def test_posterior_samples_are_shown_and_the_cloud_alone_is_a_weaker_attacker(tmp_path):
    tiny = {"width": 8, "blocks": 1, "batch_size": 32, "precision": "fp32"}
    suite = (
        SUITE[0],
        Piece("posterior", "attack", "posterior", 1, images=9, epochs=(1, 2), options={"values": 16},
              settings=tiny | {"samples": 1, "flow_steps": 1}),
        Piece("small", "attack", "posterior", 1, epochs=(1, 1), options={"values": 15}, settings=tiny),
        Piece("cloud_only", "knowledge", "cloud-only", 1, epochs=(1, 2), needs=("cloud", "labels"), settings=tiny,
              options={"words": "the cloud's half alone", "alone": True}),
    )  # fmt: skip
    subject = tiny_subject(train=90, test=20)
    sets = replace(subject.sets, labelled=True)
    audited = run_audit(replace(subject, sets=sets, classifies=True), sets, tmp_path, minutes=1.0, suite=suite)
    result = audited.result
    assert result["failed"] == []
    assert {one["name"]: one["test"]["images"] for one in result["attacks"]} == {"ridge": 20, "posterior": 9}
    (declined,) = (one for one in result["not_tested"] if one["what"] == "small")
    assert declined["why"] == "an image has 16 values, and beyond 15 it takes too long; give --size"
    originals, samples = audited.pictures()["samples"]
    assert list(samples) == ["sample 1", "sample 2", "sample 3"]
    assert all(one.shape == originals.shape == (8, 1, 4, 4) for one in samples.values())
    assert not samples["sample 1"].equal(samples["sample 2"])
    write_audit_report(tmp_path / "report.html", result, audited.pictures())
    assert "What could have been sent" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (sweep,) = result["knowledge"]
    assert (sweep["label"], sweep["attack"]) == ("the cloud's half alone (cloud-only)", "cloud-only")
    assert sweep["points"][0]["mse"]["mean"] > result["metrics"]["mse_mean"]  # never the headline


@pytest.mark.usefixtures("quick")
def test_time_is_set_aside_for_what_comes_after(tmp_path, monkeypatch):
    """Whoever writes a report afterwards has to be done within the minutes, too."""
    subject, reserves = tiny_subject(), []

    class Watched(TimeBudget):
        def __init__(self, seconds: float, spent: float, reserve: float) -> None:
            reserves.append(reserve)
            super().__init__(seconds, spent, reserve)

    monkeypatch.setattr("sfumato.audit.run.TimeBudget", Watched)
    for ending in (0.0, 7.5):
        run_audit(subject, subject.sets, tmp_path / str(ending), minutes=1.0, suite=SUITE[:1], ending=ending)
    assert reserves[-1] - reserves[0] == pytest.approx(7.5)
