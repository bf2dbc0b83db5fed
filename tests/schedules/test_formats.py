from __future__ import annotations

from itertools import pairwise

import pytest
from torch import nn
from zoo import Net, TiedLm, Vit

import frostline as fl
from frostline.errors import ScheduleError
from frostline.finetune.networks import DigitsCNN, TutorialNet
from frostline.schedules.explicit import Explicit
from frostline.schedules.first import write_first_schedule
from frostline.schedules.formats import load_schedule
from frostline.schedules.lisa import LISA
from frostline.schedules.places import Places

PHASES = [{"epoch": 0, "train": ["head"]}, {"stall": 2, "train": ["head", "layers.2"]}]
WRITTEN = """\
- epoch: 0
  train: head
- stall: 2
  train: [head, layers.2]
"""


def indented(text):
    return "".join(f"  {line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        pytest.param(WRITTEN, Explicit(PHASES), id="a-list"),
        pytest.param(f"phases:\n{indented(WRITTEN)}", Explicit(PHASES), id="phases"),
        pytest.param(
            f"schedule: explicit\nbetter: min\nphases:\n{indented(WRITTEN)}",
            Explicit(PHASES, better="min"),
            id="explicit",
        ),
        pytest.param("{schedule: lisa, period: 3}", LISA(period=3), id="a-method-in-one-line"),
        pytest.param("schedule: lisa\n", LISA(), id="a-method"),
        pytest.param(
            "- {step: 0, train: head, rates: {head: 2.0}}\n",
            Explicit([{"step": 0, "train": ["head"], "rates": {"head": 2.0}}]),
            id="rates",
        ),
    ],
)
def test_our_own(text, schedule, tmp_path):
    assert load_schedule(f"{text}\n" if "{s" in text else text) == schedule
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    assert load_schedule(path) == load_schedule(str(path)) == schedule


LIGHTNING = """\
0:
  params:
  - model.classifier.bias
  - model.classifier.weight
  max_transition_epoch: 3
1:
  params:
  - model.albert.pooler.*
2:
  params:
  - model.albert.encoder.*.(ffn|attention).*
  lr: 1e-06
  max_transition_epoch: 9
"""


def test_finetuning_scheduler():
    schedule = load_schedule(LIGHTNING, patience=4, base_lr=1e-4)
    head = (r"re:^model\.classifier\.bias(\.|$)", r"re:^model\.classifier\.weight(\.|$)")
    pooler = "re:^model.albert.pooler.*"
    encoder = "re:^(?:model.albert.encoder.*.(ffn|attention).*)"
    assert schedule.better == "min"
    assert [phase.train for phase in schedule.phases] == [
        head,
        (*head, pooler),
        (*head, pooler, encoder),
    ]
    assert [phase.starts for phase in schedule.phases] == [("epoch", 0), ("epoch", 3), ("stall", 4)]
    assert [dict(phase.rates) for phase in schedule.phases] == [
        {},
        {},
        {encoder: pytest.approx(0.01)},
    ]


@pytest.mark.parametrize(
    ("param", "names"),
    [
        pytest.param("layers.1.fc.bias", ["layers.1.fc.bias"], id="full-name"),
        pytest.param(
            "layers.1.fc", ["layers.1.fc.weight", "layers.1.fc.bias"], id="whole-components"
        ),
        pytest.param("layers.[02].fc.b.*", ["layers.0.fc.bias", "layers.2.fc.bias"], id="regex"),
        pytest.param("^head|stem.bias", ["stem.bias", "head.weight", "head.bias"], id="or"),
    ],
)
def test_names_and_expressions(param, names):
    (phase,) = load_schedule(f"0:\n  params: ['{param}']\n").phases
    assert list(fl.select(Net(), phase.train[0]).names) == names


def test_expressions_match_from_the_start():
    (phase,) = load_schedule("0:\n  params: ['fc.*']\n").phases
    with pytest.raises(fl.SelectorError, match="matches none"):
        fl.select(Net(), phase.train[0])


ONE = "0:\n  params: [a]\n  max_transition_epoch: 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("\n", "is empty: write a list", id="empty"),
        pytest.param("3\n", "expected a list of 'phases'", id="a-number"),
        pytest.param("phazes: []\n", "Nearest names: 'phases'", id="key"),
        pytest.param("[{\n", "is not YAML", id="not-yaml"),
        pytest.param("schedule: liza\n", "no schedule 'liza'. Nearest names: 'lisa'", id="method"),
        pytest.param("schedule: lisa\nperio: 3\n", "no option 'perio'", id="option"),
        pytest.param("phases: 3\n", "line 1: 'phases' must be a list", id="phases-no-list"),
        pytest.param("phases: []\n", "line 1: .*at least one phase", id="no-phases"),
        pytest.param(f"{WRITTEN}- 3\n", "line 5: a phase is a mapping", id="phase-no-mapping"),
        pytest.param(
            f"{WRITTEN}- epok: 4\n  train: a\n",
            "line 5: unknown key 'epok' in a phase. Nearest names: 'epoch'",
            id="phase-key",
        ),
        pytest.param(
            f"phases:\n{indented(WRITTEN)}bettr: min\n",
            "line 6: unknown key 'bettr'. Nearest names: 'better'",
            id="list-key",
        ),
        pytest.param("- epoch: 0\n", "line 1: 'train' must be a selector", id="no-train"),
        pytest.param(
            "- epoch: 0\n  train: [0]\n", "name that is a number into quotes", id="train-number"
        ),
        pytest.param("- epoch: 0\n  train: []\n", "line 1: .*trains nothing", id="train-nothing"),
        pytest.param("- epoch: 0\n  train: 're:('\n", "line 1: .*not a regular", id="selector"),
        pytest.param(
            "- epoch: 0\n  train: a\n  rates: 2\n", "line 3: 'rates' must map", id="rates"
        ),
        pytest.param(
            "- epoch: 0\n  train: a\n  rates: {a: -1}\n", "line 1: .*number above 0", id="rate"
        ),
        pytest.param("- epoch: soon\n  train: a\n", "line 1: .*whole number", id="epoch-word"),
        pytest.param(
            "- epoch: 0\n  step: 3\n  train: a\n", "line 1: .*exactly one of them", id="two-moments"
        ),
        pytest.param("- epoch: 0\n  epoch: 1\n", "given twice, in line 2", id="twice"),
        pytest.param(f"{WRITTEN}- epoch: 0\n  train: a\n", "phases 1 and 3 overlap", id="overlap"),
        pytest.param(f"better: up\nphases:\n{WRITTEN}", "better is one of max, min", id="better"),
        pytest.param(
            f"{ONE}2:\n  params: [b]\n", r"from 0 without gaps, got \[0, 2\]", id="fts-gap"
        ),
        pytest.param("0: 3\n", "line 1: phase 0 must be a mapping", id="fts-number"),
        pytest.param(
            "0:\n  param: [a]\n", "line 2: .*unknown key 'param'. Nearest .*'params'", id="fts-key"
        ),
        pytest.param("0:\n  params: a\n", "line 2: phase 0 needs 'params'", id="fts-text"),
        pytest.param(
            f"{ONE}1:\n  params: ['(']\n", "line 5: .*not a regular expression", id="fts-regex"
        ),
        pytest.param(
            f"{ONE}1:\n  params: [b]\n  new_optimizer: {{}}\n",
            "line 6: phase 1 has a 'new_optimizer'",
            id="fts-optimizer",
        ),
        pytest.param(
            "0:\n  params: [a]\n1:\n  params: [b]\n",
            "line 1: phase 0 ends when early stopping says so.*pass patience=",
            id="fts-patience",
        ),
        pytest.param(
            "0:\n  params: [a]\n  max_transition_epoch: x\n1:\n  params: [b]\n",
            "line 3: must be a whole number, got 'x'",
            id="fts-epoch",
        ),
        pytest.param(
            f"{ONE}1:\n  params: [b]\n  lr: 1e-5\n", "line 6: .*pass base_lr=", id="fts-rate"
        ),
        pytest.param(f"{ONE}  lr: 1e-5\n", "line 4: phase 0 trains at", id="fts-first-rate"),
        pytest.param(f"{ONE}1:\n  params: [b]\n  lr: slow\n", "must be a number", id="fts-lr-word"),
    ],
)
def test_refused(text, message, tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(ScheduleError, match=message) as caught:
        load_schedule(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ScheduleError, match=r"cannot read the schedule .*no\.yaml"):
        load_schedule(tmp_path / "no.yaml")


def test_rates_must_be_above_0():
    text = f"{ONE}1:\n  params: [b]\n  lr: 0\n"
    with pytest.raises(ScheduleError, match="rates must be above 0, got 0"):
        load_schedule(text, base_lr=1.0)


def test_places():
    places = Places("a:\n- b: 1\n  c: 2\n- d\n", "f")
    assert places() == "f"
    assert [places("a"), places("a", 0, "c"), places("a", 1), places("a", 1, "x")] == [
        "f, line 1",
        "f, line 3",
        "f, line 4",
        "f, line 4",
    ]
    assert places("a", 9) == "f, line 1"
    assert places("z") == "f"


@pytest.mark.parametrize("make", [DigitsCNN, TutorialNet, Net, Vit, TiedLm])
def test_a_first_schedule_can_be_read_and_thaws_from_the_top(make):
    model = make()
    text = write_first_schedule(model)
    assert max(map(len, text.splitlines())) <= 100
    phases = load_schedule(text).phases
    assert [phase.starts for phase in phases] == [("epoch", n) for n in range(len(phases))]
    trained = [set(fl.select(model, phase.train[0]).names) for phase in phases]
    assert all(below < above for below, above in pairwise(trained))
    assert trained[-1] == set(fl.select(model, "**").names)


def test_a_first_schedule_says_what_it_is_about():
    text = write_first_schedule(DigitsCNN())
    assert "# A first schedule for DigitsCNN" in text
    assert "3 modules (Sequential) in the model." in text
    assert '  # head: 645 parameters\n  - epoch: 0\n    train: ["layers:last:1"]\n' in text
    assert text.endswith(
        '  # and stem: 352 parameters, which is all\n  - epoch: 4\n    train: ["**"]\n'
    )


def test_no_first_schedule_without_blocks():
    with pytest.raises(fl.SelectorError, match="no blocks found"):
        write_first_schedule(nn.Linear(2, 2))
