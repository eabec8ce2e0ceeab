import pytest
from report_data import check_self_contained, study

from sfumato.errors import ConfigError
from sfumato.report.study import study_markdown, write_study_report


def written(tmp_path, data):
    path = tmp_path / "study.html"
    write_study_report(path, data)
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else_and_has_every_number(tmp_path):
    text = check_self_contained(written(tmp_path, study())).text
    assert "At equal accuracy CEM leaves the attacker 1.50 times the error of noise alone" in text
    assert "σ 0.1, λ 0.1 97.8 ± 0.3 0.0190 ± 0.0005 0.0095 2.00 1.80–2.20 –" in text
    assert "σ 0.1, λ 1 97.1 ± 0.3 0.0076 ± 0.0005 0.0095 0.80 0.72–0.88 2.3" in text
    assert "σ 0.05 98.4 ± 0.2 0.0075 ± 0.0004" in text
    assert "noise + CEM, σ 0.1: λ 0.1: MSE 0.0190 ± 0.0005, accuracy 97.8 ± 0.3 %" in text
    assert "Bars: standard error over folds." in text
    for value in ("1432 s", "5 folds over 1,797 digits", "A small computer", "abc1234"):
        assert value in text


def test_markup_stays_text_and_bytes_stay_the_same(tmp_path):
    data = study() | {"train_config": {"data": "<script>1</script>"}, "attack_config": {"epochs": 30}}
    data["evidence"] = data["evidence"] | {"device": "<b>"}
    source = written(tmp_path, data)
    page = check_self_contained(source)
    assert "<script>1</script>" in page.text
    assert '"epochs": 30' in page.text
    assert "<b></dd>" not in source
    assert written(tmp_path, data) == source


def test_curves_of_one_defence_differ_by_their_lines(tmp_path):
    data = study()
    data["points"] += [point | {"noise_std": 0.2} for point in data["points"]]
    text = check_self_contained(written(tmp_path, data)).text
    assert "noise + CEM, σ 0.1" in text
    assert "noise + CEM, σ 0.2" in text
    assert "stroke-dasharray" in written(tmp_path, data)


def test_markdown_has_both_tables():
    text = study_markdown(study(1.1, 0.9, 1.3))
    assert text.startswith("No difference is shown: at equal accuracy CEM leaves the attacker 1.10 times")
    lines = text.splitlines()
    assert "| σ 0.1, λ 1 | 97.1 ± 0.3 | 0.0076 ± 0.0005 | 0.0095 | 0.80 (0.72–0.88) | 2.3 |" in lines
    assert "| σ 0.05 | 98.4 ± 0.2 | 0.0075 ± 0.0004 |" in lines
    assert [line.count("|") for line in lines if line.startswith("|")] == [7] * 4 + [4] * 4
    assert "abc1234" in text
    assert "1797 digits, 1432 s" in text


def test_markup_in_markdown_stays_text():
    data = study()
    data["evidence"] = {"device": "<script>|"}
    assert r"device &lt;script>\|." in study_markdown(data)


def test_an_empty_study_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no points to compare"):
        written(tmp_path, study() | {"points": []})
    with pytest.raises(ConfigError, match="no points to compare"):
        study_markdown(study() | {"noise_curve": []})
