from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from zoo import Net, SharedStorage, TiedLm

import frostline as fl

RULES = st.tuples(
    st.sampled_from(["freeze", "train"]),
    st.sampled_from(["**", "0", "head", "re:^a", "type:Linear", ["a", "b.*"], "first:2:x"]),
).map(lambda rule: fl.Rule(action=rule[0], select=rule[1]))
PLANS = st.lists(RULES, min_size=1, max_size=5).map(lambda rules: fl.Plan(rules=rules))


@given(PLANS)
def test_yaml_round_trip(plan):
    again = fl.Plan.parse(plan.to_yaml())
    assert again == plan
    assert again.to_yaml() == plan.to_yaml()


def test_save_and_load(tmp_path):
    plan = fl.Plan.all_but("head")
    plan.save(tmp_path / "plan.yaml")
    assert (tmp_path / "plan.yaml").read_text() == (
        "frostline: 1\nrules:\n- freeze: '**'\n- train: head\n"
    )
    assert fl.Plan.load(tmp_path / "plan.yaml") == plan


def test_composed_selectors_are_written_too():
    plan = fl.Plan.freezing(fl.glob("a.**") & ~fl.kind(nn.BatchNorm2d))
    assert fl.Plan.parse(plan.to_yaml()).rules[0].select.plain() == {
        "all": ["a.**", {"not": "type:torch.nn.modules.batchnorm.BatchNorm2d"}]
    }


def test_immutable():
    plan = fl.Plan.freezing("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.rules = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.rules[0].action = "train"
    assert len({plan, fl.Plan.freezing("a")}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("# nothing\n", "is empty", id="comment-only"),
        pytest.param("{[", "is not YAML", id="not-yaml"),
        pytest.param("- freeze: a", "expected the keys 'frostline' and 'rules'", id="a-list"),
        pytest.param("freeze: a", "unknown key 'freeze'", id="unknown-key"),
        pytest.param("frostline: 1\nrule: []", "Nearest names: 'rules'", id="key-typo"),
        pytest.param("rules: [{freeze: a}]", "expected 'frostline: 1'", id="no-version"),
        pytest.param("frostline: 2\nrules: [{freeze: a}]", "got 2", id="later-version"),
        pytest.param("frostline: 1\nrules: []", "at least one rule", id="no-rules"),
        pytest.param("frostline: 1\nrules: {freeze: a}", "must be a list", id="rules-no-list"),
        pytest.param(
            "frostline: 1\nrules: [{freeze: a}, {freez: b}]",
            "rule 2: unknown key 'freez'. Nearest names: 'freeze'",
            id="action-typo",
        ),
        pytest.param(
            "frostline: 1\nrules: [{freeze: a, train: b}]", "rule 1: expected one", id="two"
        ),
        pytest.param(
            "frostline: 1\nrules: [{freeze: 3}]", "rule 1: 3 is not a selector", id="number"
        ),
        pytest.param("frostline: 1\nrules: [{freeze: 're:('}]", "rule 1: .*regular", id="regex"),
        pytest.param(
            "frostline: 1\nrules: [!!python/name:os.system x]", "is not YAML", id="unsafe"
        ),
        pytest.param(
            "frostline: 1\nrules:\n- freeze: a\n  freeze: b",
            "freeze is given twice, in line 4 again",
            id="twice",
        ),
        pytest.param(
            "frostline: 1\nrules: [{freeze: 2024-13-45}]",
            "has a value that YAML can't read",
            id="a-bad-date",
        ),
        pytest.param("[" * 5000, "is not YAML", id="too-deep"),
    ],
)
def test_refusals(text, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(fl.PlanError, match=message) as caught:
        fl.Plan.load(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(fl.PlanError, match=r"cannot read the plan .*no.yaml.*No such file"):
        fl.Plan.load(tmp_path / "no.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(fl.PlanError, match="cannot read"):
        fl.Plan.load(tmp_path / "binary")


def states(model, *rules):
    model.requires_grad_(True)
    plan = fl.Plan(rules=[fl.Rule(action=action, select=select) for action, select in rules])
    with fl.freeze(model, plan, everything=True):
        return {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def test_the_last_match_wins():
    rules = [("freeze", "**"), ("train", "layers"), ("freeze", "layers.0"), ("train", "norm")]
    assert states(Net(2), *rules) == {
        "layers.0.norm.weight",
        "layers.0.norm.bias",
        "layers.1.fc.weight",
        "layers.1.fc.bias",
        "layers.1.norm.weight",
        "layers.1.norm.bias",
    }


def test_what_no_rule_matches_keeps_its_state():
    model = Net(1)
    model.stem.weight.requires_grad_(False)
    fl.freeze(model, "head")
    assert [model.stem.weight.requires_grad, model.stem.bias.requires_grad] == [False, True]


WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("rules", "trains"),
    [
        pytest.param([("freeze", "**"), ("train", "lm_head")], True, id="general-then-one-name"),
        pytest.param([("freeze", "lm_head"), ("train", "**")], True, id="one-name-then-general"),
        pytest.param([("train", "wte"), ("freeze", ["wte", "lm_head"])], False, id="both-named"),
        pytest.param([("freeze", "wte"), ("freeze", "lm_head")], False, id="agreed"),
    ],
)
def test_tied_tensors_that_are_clear(rules, trains):
    assert states(TiedLm(), *rules) >= ({WTE, HEAD} if trains else set())
    assert (WTE in states(TiedLm(), *rules)) is trains


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([("freeze", "wte"), ("train", "lm_head")], id="object"),
        pytest.param([("train", "lm_head"), ("freeze", "transformer")], id="wider-but-other-name"),
    ],
)
def test_rules_at_odds_about_a_tied_tensor(rules):
    with pytest.raises(fl.PlanError, match=r"rules at odds.*tied") as caught:
        states(TiedLm(), *rules)
    assert WTE in str(caught.value)
    assert HEAD in str(caught.value)


def test_rules_at_odds_about_one_memory():
    with pytest.raises(fl.PlanError, match=r"a\.weight .*b\.weight"):
        states(SharedStorage(), ("freeze", "a"), ("train", "b"))


def test_freezing_one_of_two_on_one_memory_freezes_both():
    assert states(SharedStorage(), ("freeze", "a")) == {"c.weight", "c.bias"}
