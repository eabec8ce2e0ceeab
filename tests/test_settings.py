"""Whatever a setting is given ends in one sentence, or is valid."""

import math
import re
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from sfumato import attacks, data
from sfumato.cli.commands import fields_of, names_in
from sfumato.deploy.export import ExportConfig
from sfumato.errors import ConfigError
from sfumato.protect.run import ProtectConfig
from sfumato.serve import ServeConfig
from sfumato.studies import Space
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model

USUAL = {
    "sfumato.training.config:TrainConfig": TrainConfig(),
    "sfumato.deploy.export:ExportConfig": ExportConfig("a"),
    "sfumato.protect.run:ProtectConfig": ProtectConfig(),
    "sfumato.serve.settings:ServeConfig": ServeConfig((Path("a"),)),
    "sfumato.studies.space:Space": Space(),
} | {f"sfumato.attacks.registry:{entry.config.__name__}": entry.config() for entry in attacks.ATTACKS.values()}
WRONG = (math.nan, math.inf, -math.inf, object(), "nonsense", True, None, [1], 2.5)
CASES = [(where, field.name) for where, usual in USUAL.items() for field in fields(usual)]


BASES = {"AttackConfig", "LearnedConfig", "AdamConfig"}  # of the attacks' settings; no attack has one of them alone


def test_no_settings_class_is_left_out():
    texts = (path.read_text(encoding="utf-8") for path in Path(data.__file__).parents[1].rglob("*.py"))
    named = {name for text in texts for name in re.findall(r"^class (\w+Config)\b", text, re.M)}
    assert named - BASES == {where.rpartition(":")[2] for where in USUAL} - {"Space"} - BASES


def kinds(usual, name):
    return get_type_hints(type(usual))[name]


@pytest.mark.parametrize(("where", "name"), CASES)
def test_a_wrong_value_is_refused_by_name(where, name):
    usual = USUAL[where]
    for value in (*WRONG, -1, 0):
        try:
            made = replace(usual, **{name: value})
        except ConfigError:
            continue
        kept = getattr(made, name)
        if isinstance(kept, float | int) and not isinstance(kept, bool):
            assert math.isfinite(kept), (name, value)
        hint = str(kinds(usual, name))
        assert type(kept).__name__ in hint or "Literal" in hint or kept is None or value in (0, -1), (name, value)


@pytest.mark.parametrize("value", [0, -1])
def test_what_a_training_accepts_it_can_use(value):
    """The optimizer, the schedule and the networks have checks of their own, whose errors are no sentences."""
    images = data.load("digits", None, seed=0).train.subset(torch.arange(40))
    small = TrainConfig(width=4, epochs=1, batch_size=20, device="cpu", watch=False, cem=True)
    for field in fields(TrainConfig):
        if not isinstance(getattr(small, field.name), bool) and field.name not in ("limit", "test_limit", "size"):
            try:
                config = replace(small, **{field.name: value})
            except ConfigError:
                continue
            chosen = build_defenses(config, 10)
            trainer = Trainer(build_model(config, images, chosen), chosen, images, None, config)
            trainer.run(None, should_stop=None)


@pytest.mark.parametrize("where", USUAL)
def test_the_command_line_reads_the_same_settings_from_the_source(where):
    usual = USUAL[where]
    read = {one.name: one for one in fields_of(where)}
    assert list(read) == [field.name for field in fields(usual)]
    for field in fields(usual):
        one = read[field.name]
        assert one.kind == kinds(usual, field.name), field.name
        assert one.text.removesuffix(")").endswith("."), field.name
        assert one.text[0].isupper(), one.text
        if one.default is not None and field.default is not MISSING:
            assert one.default == field.default, field.name


def test_the_command_line_knows_every_attack():
    found = {name: words[-1] for name, words in names_in("sfumato.attacks.registry:ATTACKS").items()}
    assert found == {name: entry.config.__name__ for name, entry in attacks.ATTACKS.items()}
