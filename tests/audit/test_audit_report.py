"""What is made of a finished audit: its page, its evidence, its file, and comparisons."""

import copy
import json
import re

import jsonschema
import pytest

from sfumato.audit import conclude, is_audit, parse_threshold, read_audit, schema
from sfumato.audit.compare import compare
from sfumato.errors import CheckpointError
from sfumato.report.audit import write_audit_report
from sfumato.report.audit_evidence import write_evidence
from sfumato.report.comparison import write_comparison_report


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
        "C11.2",
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
