import copy
import json
import re
from dataclasses import replace

import jsonschema
import pytest
import torch
from audit_cases import SUITE, tiny_subject

from sfumato.audit import conclude, is_audit, judge, parse_threshold, read_audit, run_audit, schema
from sfumato.audit.compare import compare
from sfumato.audit.suite import Piece
from sfumato.audit.thresholds import METRICS
from sfumato.data import ImageSet
from sfumato.errors import CheckpointError, ConfigError, Interrupted
from sfumato.report.audit import write_audit_report
from sfumato.report.audit_evidence import write_evidence
from sfumato.report.comparison import write_comparison_report
from sfumato.split import Channel, SplitModel


def audit(folder, subject=None, minutes=2.0, **options):
    subject = subject or tiny_subject()
    return run_audit(subject, subject.sets, folder, minutes=minutes, suite=SUITE, **options)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return folder, audit(folder)


def test_what_is_written_satisfies_the_published_schema(audited):
    folder, done = audited
    written = json.loads((folder / "audit.json").read_text())
    assert written == json.loads(json.dumps(done.result))
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    validator.validate(written)
    for change in ({"attacks": []}, {"format": 1}, {"extra": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(written | change)


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
    result = audit(tmp_path, lying).result
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


def test_the_page_needs_nothing_else(audited, tmp_path):
    done = audited[1]
    result = copy.deepcopy(done.result)
    result = conclude(result, [parse_threshold("psnr_mean > 3"), parse_threshold("psnr_mean > 99")])
    result["data"]["skipped"] = [{"file": "a<b.png", "reason": "cannot read the image a<b.png: it is empty"}]
    write_audit_report(tmp_path / "report.html", result, done.pictures(4))
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)""", page) == []
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 4  # typical and worst: the originals, and every attack that beat the mean image
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    assert page.count('role="img"') == page.count("<desc")  # every figure has a description
    assert "a&lt;b.png" in page
    assert "<b>failed</b>" in page
    for heading in ("What is provable", "What was not tested", "The same image more than once"):
        assert heading in page


def test_the_evidence_names_standards_and_repeats_figures(audited, tmp_path):
    result = audited[1].result
    write_evidence(tmp_path, result)
    found = json.loads((tmp_path / "evidence.json").read_text())
    rows = {f"{one['standard']} {one['clause']}": one["finding"] for one in found["evidence"]}
    for words in (
        "AITG-MOD-05",
        "C11.4",
        "ISO/IEC 27559:2022 7.3.2",
        "ISO/IEC 27559:2022 8.2.3",
        "NIST AI 100-2",
        "C-413/23 P",
    ):
        assert any(words in name for name in rows), words
    text = (tmp_path / "evidence.md").read_text()
    assert f"{result['metrics']['psnr_worst5']:.1f} dB" in rows["ISO/IEC 27559:2022 7.3.2, maximum or average risk"]
    assert result["leakage"]["sentence"] in text
    assert "do not answer" in text
    assert result["target"]["behaviour"] in text


def test_worst_pictures_are_those_redrawn_best(audited):
    done = audited[1]
    originals, shown = done.pictures(3)["worst"]
    best = done.result["best"]["test"]["mse"]
    errors = (originals - shown[best]).square().mean((1, 2, 3))
    assert float(errors.max()) <= float(done.reconstructed[best].mse.sort().values[2]) + 1e-4
    assert {"ridge", "nearest", "decoder"} <= set(shown)


class Stop:
    """True at the n-th question."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [0, 3, 8])
def test_an_interrupted_audit_ends_as_an_undisturbed_one(audited, tmp_path, after):
    with pytest.raises(Interrupted):
        audit(tmp_path, should_stop=Stop(after))
    assert not (tmp_path / "audit.json").exists()
    result = audit(tmp_path).result
    calm = audited[1].result
    for part in ("attacks", "queries", "knowledge"):
        for ours, theirs in zip(result[part], calm[part], strict=True):
            assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert list((tmp_path / "pieces").glob("*.state*")) == []


def test_a_killed_attack_loses_at_most_one_epoch(tmp_path):
    lines = []

    def tell(text):
        lines.append(text)
        if "decoder: epoch 2/3" in text and not any("again" in line for line in lines):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(tmp_path, tell=tell)
    lines.append("again")
    audit(tmp_path, tell=tell)
    after = lines[lines.index("again") :]
    assert not any("decoder: epoch 2/3" in line or "ridge" in line for line in after)
    assert any("decoder: epoch 3/3" in line for line in after)


def test_a_second_call_works_on_nothing(audited, monkeypatch):
    folder, done = audited
    monkeypatch.setattr("sfumato.audit.run._RUNNERS", {})
    again = audit(folder).result
    assert again["attacks"] == done.result["attacks"]


def test_another_target_in_the_same_folder_is_refused(audited):
    with pytest.raises(CheckpointError, match="holds an audit with another target, channel; choose another --out"):
        audit(audited[0], tiny_subject(noise_std=0.2))
    with pytest.raises(CheckpointError, match="holds an audit with another seed"):
        audit(audited[0], seed=5)


class Forward(torch.nn.Module):
    """One text, one set of weights, two behaviours."""

    pools = True

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1) if Forward.pools else x.flatten(1)[:, :4]


def test_a_changed_forward_is_another_model(tmp_path, monkeypatch):
    """The name, the printed text, the weights and the feature's shape stay; the features do not."""
    subject = replace(tiny_subject(), model=SplitModel(Forward(), Channel(noise_std=0.1), torch.nn.Identity()))
    subject = replace(subject, prior=None, exact_mse=None)
    run_audit(subject, subject.sets, tmp_path, minutes=0.5, suite=SUITE[:1])
    run_audit(subject, subject.sets, tmp_path, minutes=0.5, suite=SUITE[:1])
    monkeypatch.setattr(Forward, "pools", False)
    with pytest.raises(CheckpointError, match="another behaviour"):
        run_audit(subject, subject.sets, tmp_path, minutes=0.5, suite=SUITE[:1])


def test_another_version_is_another_audit(audited, monkeypatch):
    monkeypatch.setattr("sfumato.__version__", "99.0")
    with pytest.raises(CheckpointError, match="holds an audit with another versions"):
        audit(audited[0])


def test_more_minutes_extend_an_audit(tmp_path, monkeypatch):
    """What was done stays; what was left out, or had not converged, gets the new time; fewer minutes change nothing."""
    subject = tiny_subject()
    suite = (SUITE[0], replace(SUITE[5], epochs=(1, 4)), SUITE[-1])
    monkeypatch.setattr("sfumato.audit.plan.FEWEST", 10**6)
    monkeypatch.setattr("sfumato.audit.plan.decide", lambda *_: {"epochs": 1, "images": 300})
    first = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=suite).result
    assert [len(one["history"]) for one in first["attacks"] if one["name"] == "decoder"] == [1]
    assert "optimization" in {one["what"] for one in first["not_tested"]}
    assert first["metrics"]["left_out"] == 1
    monkeypatch.undo()
    longer = run_audit(subject, subject.sets, tmp_path, minutes=9.0, suite=suite).result
    by_name = {one["name"]: one for one in longer["attacks"]}
    assert len(by_name["decoder"]["history"]) == 4
    assert "optimization" in by_name
    assert longer["metrics"]["left_out"] == 0
    assert by_name["ridge"] == next(one for one in first["attacks"] if one["name"] == "ridge")
    assert longer["budget"]["minutes"] == 9.0
    shorter = run_audit(subject, subject.sets, tmp_path, minutes=2.0, suite=suite).result
    assert shorter["attacks"] == longer["attacks"]
    assert shorter["budget"]["minutes"] == 9.0


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


def test_what_does_not_fit_into_memory_is_declined_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.audit.memory.available_memory", lambda _: 1e5)
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
    assert untested["bounds"].startswith("without noise on the wire")
    assert untested["repeats"].startswith("nothing random is added")
    jsonschema.validate(result, schema())


def test_a_budget_has_to_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="minutes is 0; give a positive number"):
        audit(tmp_path, minutes=0)


class Clock:
    """Stands still but for what the test's own steps take, whatever the machine does."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("slower", [1.0, 4.0])
def test_the_time_is_used_and_kept(tmp_path, monkeypatch, slower):
    """Two attacks that could train for ever share 10 minutes; both get their share, also where the machine slows down
    after it was measured."""
    clock, speed = Clock(), [1.0]

    def step(self, learner, turn):
        clock.now += 2.0 * speed[0]
        return torch.full((len(self.figures),), 0.1)

    for name in ("decoder.DecoderAttack", "gan.GanAttack"):
        monkeypatch.setattr(f"sfumato.attacks.{name}._step", step)
    monkeypatch.setattr("sfumato.attacks.learned.LearnedAttack._judge", lambda *_: 0.1)
    monkeypatch.setattr("time.monotonic", clock)
    long = {"epochs": (1, 10**6), "settings": {"width": 4, "blocks": 0, "precision": "fp32"}}
    suite = [Piece("decoder", "attack", "decoder", 1, 0, **long), Piece("gan", "attack", "gan", 1, 1, **long)]
    subject = tiny_subject()

    def tell(text):
        speed[0] = slower if "epochs" in text else speed[0]  # the plan is made

    result = run_audit(subject, subject.sets, tmp_path, minutes=10, suite=suite, tell=tell).result
    assert 0.9 * 600 < result["budget"]["seconds"] < 1.1 * 600
    decoder, gan = (next(one for one in result["attacks"] if one["name"] == name) for name in ("decoder", "gan"))
    assert min(decoder["seconds"], gan["seconds"]) > 0.3 * 600
    if slower > 1:
        assert decoder["converged"] is False
        assert re.fullmatch(r"its time was over after \d+ of \d+ epochs; give more --minutes", decoder["reason"])


def result_of(audited, name, accuracy, mse, worst):
    result = copy.deepcopy(audited[1].result)
    result["target"] |= {"name": name, "defense": name.split("-")[0]}
    result["accuracy"] = accuracy
    result["attacks"] = [result["attacks"][0]]
    attack = result["attacks"][0]
    attack["test"]["mse"] |= {"mean": mse, "error": 0.0002, "worst5": worst, "worst": worst}
    result["best"]["test"]["mse"] = attack["name"]
    result["data"]["test_images"] = 10_000
    return result


def test_who_dominates_whom(audited, tmp_path):
    comparison = compare(
        [
            result_of(audited, "noise-1", 0.90, 0.020, 0.010),
            result_of(audited, "noise-2", 0.80, 0.040, 0.020),
            result_of(audited, "cem-1", 0.90, 0.030, 0.010),  # harder than noise-1, as accurate
            result_of(audited, "cem-2", 0.9001, 0.0301, 0.010),  # the same within chance
            result_of(audited, "late", 0.95, 0.030, 0.001),  # more accurate, hard on average, bad for some
        ]
    )
    by_name = {one["name"]: one for one in comparison["subjects"]}
    assert by_name["cem-1"]["dominates"] == ["noise-1"]
    assert by_name["cem-2"]["dominates"] == ["noise-1"]
    assert by_name["noise-1"]["dominated_by"] == ["cem-1", "cem-2"]
    assert by_name["late"]["dominates"] == []
    assert by_name["noise-2"]["dominates"] == by_name["noise-2"]["dominated_by"] == []
    assert comparison["headline"].startswith("Dominated: noise-1 (by cem-1, cem-2). Not dominated: noise-2, cem-1")
    write_comparison_report(tmp_path / "report.html", comparison)
    page = (tmp_path / "report.html").read_text()
    assert page.count('role="img"') == 2
    assert "is dominated by cem-1, cem-2" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_cannot_be_compared_is_said(audited, tmp_path):
    one, other = (result_of(audited, "same", accuracy, 0.02, 0.01) for accuracy in (0.9, None))
    other["data"]["fingerprint"]["test"] = "other"
    other["budget"]["minutes"] = 9
    comparison = compare([one, other])
    assert [line["name"] for line in comparison["subjects"]] == ["same (1)", "same (2)"]
    text = " ".join(comparison["caveats"])
    for words in ("different test images", "different budgets", "accuracy is missing"):
        assert words in text
    write_comparison_report(tmp_path / "report.html", comparison)  # without accuracies there is no figure
    assert 'role="img"' not in (tmp_path / "report.html").read_text()


def test_an_audit_is_read_back(audited, tmp_path):
    folder, done = audited
    assert is_audit(folder)
    assert not is_audit(tmp_path)
    assert read_audit(folder)["metrics"] == done.result["metrics"]
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"audit\.json is damaged"):
        read_audit(tmp_path)


def test_the_seed_decides(audited, tmp_path):
    result = audit(tmp_path, seed=1).result
    assert result["attacks"][0]["test"]["mse"] != audited[1].result["attacks"][0]["test"]["mse"]


def test_time_that_is_left_over_goes_to_what_did_not_fit(tmp_path, monkeypatch):
    """A search that has no room at first runs when the attack behind it has come to rest early."""
    asked = []

    def choose(piece, context, seconds, costs, slower, durations):
        asked.append((piece.name, seconds))
        if piece.name == "optimization":
            return {"shown": 5} if seconds > 60 else {"skip": "too little time"}
        return {}

    monkeypatch.setattr("sfumato.audit.run.choose", choose)
    subject = tiny_subject()
    slow = replace(SUITE[1], share=9)
    result = run_audit(subject, subject.sets, tmp_path, minutes=2.0, suite=(SUITE[0], SUITE[-1], slow)).result
    assert [name for name, _ in asked] == ["ridge", "optimization", "nearest", "optimization"]
    by_name = {one["name"]: one for one in result["attacks"]}
    assert set(by_name) == {"ridge", "optimization", "nearest"}
    assert by_name["optimization"]["test"]["images"] == 5


def test_what_never_fits_is_said_and_tried_again(tmp_path, monkeypatch):
    """A plan that was made in a busy moment leaves nothing out for good."""
    monkeypatch.setattr("sfumato.audit.plan.FEWEST", 10**6)
    subject = tiny_subject()
    options = {"minutes": 2.0, "suite": (SUITE[0], SUITE[-1])}
    result = run_audit(subject, subject.sets, tmp_path, **options).result
    untested = {one["what"]: one["why"] for one in result["not_tested"]}
    assert untested["optimization"] == "too little time for a search image by image"
    monkeypatch.undo()
    again = run_audit(subject, subject.sets, tmp_path, **options).result
    assert {one["name"] for one in again["attacks"]} == {"ridge", "optimization"}


def test_test_images_that_are_training_images_are_counted_first(tmp_path):
    subject = tiny_subject()
    sets = replace(subject.sets, test=subject.sets.train.subset(range(30, 90)))
    result = run_audit(subject, sets, tmp_path, minutes=0.5, suite=SUITE[:1]).result
    assert result["data"]["shared"] == 60
    assert result["verdict"]["headline"].startswith("60 of the 60 test images are training images too")
