from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from frostline.cli import app
from frostline.cli.compare_view import show
from frostline.compare.claims import Claim
from frostline.compare.comparison import Comparison, Replayed, Way, WayResult
from frostline.measure import Prediction, StepTime

FC1 = ("fc1.weight", "fc1.bias")
FC2 = ("fc2.weight", "fc2.bias")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert app.run(["compare", "--json", "--repeats", "3", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


# --- json -------------------------------------------------------------------------------------


def test_json_of_the_tutorial(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys)
    cases = {case["way"]: case for case in found["cases"]}
    assert list(cases) == ["none", "grad", "optimizer", "best", "replay"]
    for way, case in cases.items():
        assert list(case["changed"]) == [*FC1, *FC2]
        for name in FC1:
            assert (case["changed"][name] == 0.0) is (way != "none")
            assert case["requires_grad"][name] is (way in ("none", "optimizer"))
        for name in FC2:
            assert case["changed"][name] > 0.0
            assert case["requires_grad"][name] is True
        assert type(case["step_seconds"]) is float
        assert 0 < case["step_seconds"] < 10
    assert [case["gradient_bytes"] for case in cases.values()] == [344, 200, 344, 200, 200]
    assert [case["optimizer_state_bytes"] for case in cases.values()] == [0] * 5
    assert [case["activation_bytes"] for case in cases.values()] == [292, 196, 292, 196, 196]
    assert (found["model"], found["optimizer"], found["steps"]) == ("tutorial", "SGD", 10)
    assert found["frozen"] == list(FC1)
    assert len(found["claims"]) == 9
    assert [case["replay"] for case in cases.values()][:4] == [None] * 4
    # 16 bytes of the ReLU's output for each of 10 × 3 rows, and their digests.
    replayed = cases["replay"]["replay"]
    assert replayed["batches"] >= 10
    assert replayed["kept_bytes"] >= 30 * 16
    assert (replayed["is_same"], replayed["why_not"]) == (True, None)


def test_json_of_digits(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(
        capsys, "--model", "digits-cnn", "--optimizer", "AdamW", "--lr", "1e-3", "--steps", "2"
    )
    cases = {case["way"]: case for case in found["cases"]}
    assert {name.split(".")[0] for name in found["frozen"]} == {"stem", "block1", "block2"}
    assert len(found["frozen_buffers"]) == 9
    assert cases["none"]["changed"]["stem.1.num_batches_tracked"] == 2.0
    for way in ("grad", "optimizer", "best", "replay"):
        assert [cases[way]["changed"][name] for name in found["frozen"]] == [0.0] * 9
        moved = [name for name in found["frozen_buffers"] if cases[way]["changed"][name] != 0.0]
        assert len(moved) == (0 if way in ("best", "replay") else 9)
    states = [case["optimizer_state_bytes"] for case in cases.values()]
    assert states == [1044320, 597052, 597052, 597052, 597052]
    assert found["late_freeze_optimizer_state_bytes"] == 1044320
    for case in cases.values():
        for kind in ("gradient_bytes", "optimizer_state_bytes", "activation_bytes"):
            assert case["predicted"][kind] == case[kind]


def test_freeze_and_seed_are_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    one, same = (run_json(capsys, "--freeze", "bias", "--seed", "3") for _ in range(2))
    other = run_json(capsys, "--freeze", "bias", "--freeze", "fc2", "--seed", "4")
    changed = [[case["changed"] for case in found["cases"]] for found in (one, same, other)]
    assert one["frozen"] == ["fc1.bias", "fc2.bias"]
    assert other["frozen"] == ["fc1.bias", "fc2.weight", "fc2.bias"]
    assert changed[0] == changed[1]
    assert changed[0][0] != changed[2][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--freeze", "fc3"], r"'fc3'.*'fc1'", id="selector-matches-nothing"),
        pytest.param(["--freeze", "**"], r"nothing to train", id="nothing-left-to-train"),
        pytest.param(["--model", "tutorail"], r"'tutorail'.*'tutorial'", id="unknown-model"),
        pytest.param(["--optimizer", "Adamm"], r"'Adamm'.*'Adam'", id="unknown-optimizer"),
        pytest.param(["--optimizer", "Muon"], r"Muon.*2D", id="unfit-optimizer"),
        pytest.param(["--lr", "-1"], r"Invalid learning rate", id="negative-lr"),
        pytest.param(["--lr", "1e30"], r"lower learning rate", id="diverges"),
        pytest.param(["--steps", "0"], r"--steps", id="no-steps"),
        pytest.param(["--seed", "-1"], r"--seed", id="negative-seed"),
    ],
)
def test_wrong_calls_end_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)


def test_text_names_the_next_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert app.run(["compare", "--repeats", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith(
        "\nNext: frostline compare --model digits-cnn --optimizer AdamW\n"
    )  # fmt: skip
    assert max(map(len, captured.out.splitlines())) <= 80


# --- what is shown ----------------------------------------------------------------------------

SETTINGS = {
    "model": "net",
    "optimizer": "AdamW",
    "lr": 1e-2,
    "batch_size": 32,
    "threads": 2,
    "torch": "2.13.0",
}


def seconds(median: float, spread: float = 0.0) -> StepTime:
    return StepTime(
        median_seconds=median, low_seconds=median - spread, high_seconds=median + spread, repeats=9
    )


def result(way: Way, **changes: Any) -> WayResult:
    frozen = way in ("grad", "best")
    held = {
        "gradient_bytes": 1022 * 1024 // (1 + frozen),
        "optimizer_state_bytes": 1023 * 1024,
        "activation_bytes": 1020 * 1024**2 // (1 + frozen),
    }
    base = WayResult(
        way=way,
        changed={
            "a.weight": 0.125 if way == "none" else 0.0,
            "a.mean": 0.0 if way == "best" else 1.5,
            "b.weight": 2.5e-5,
        },
        requires_grad={},
        leftover_gradient_bytes=100 if way == "optimizer" else 0,
        step_time=seconds(0.00615 if frozen else 0.0123),
        predicted=Prediction(forward_flops=0, backward_flops=0, **held),
        **held,
    )
    return replace(base, **changes)


def comparison(**changes: dict[str, Any]) -> Comparison:
    ways: tuple[Way, ...] = ("none", "grad", "optimizer", "best")
    return Comparison(
        ways=tuple(result(way, **changes.get(way, {})) for way in ways),
        frozen=("a.weight",),
        frozen_buffers=("a.mean",),
        trained=("b.weight",),
        late_state_bytes=0,
        steps=10,
    )


def shown(found: Comparison, width: int = 80) -> str:
    claim = Claim(says="It is faster.", verdict="does not hold", measured="It is slower. " * 8)
    stream = io.StringIO()
    show(SETTINGS, found, [claim], Console(file=stream, width=width, highlight=False))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def test_what_is_shown_at_80_columns() -> None:
    """With every figure at its longest."""
    assert shown(comparison()) == EXPECTED.rstrip("\n")


EXPECTED = """
Four ways to freeze a part of net
AdamW, lr 0.01, 10 steps of 32, on 2 CPU threads, torch 2.13.0

           frozen    trained                optimizer               ms a     to
way        part      part       gradients       state  activations  step   none
───────────────────────────────────────────────────────────────────────────────
none       moves     moves     1022.0 KiB  1023.0 KiB   1020.0 MiB  12.3  1.00×
grad       buffers!  moves      511.0 KiB  1023.0 KiB    510.0 MiB  6.15  0.50×
optimizer  buffers!  moves    1022.0 KiB!  1023.0 KiB   1020.0 MiB  12.3  noise
best       still     moves      511.0 KiB  1023.0 KiB    510.0 MiB  6.15  0.50×

none       nothing is frozen
grad       way one: requires_grad=False; the optimizer is given everything
optimizer  way two: the optimizer is given only the rest
best       both: fl.freeze and fl.optimizer

moved in 10 steps      none      grad   optimizer      best
───────────────────────────────────────────────────────────
❄ a.weight             0.12         0           0         0
❄ a.mean                1.5     1.5 !       1.5 !         0
● b.weight          2.5e-05   2.5e-05     2.5e-05   2.5e-05

❄ to be frozen, ● trained; largest absolute change of an element. ! moved
although frozen, or gradients that zero_grad() leaves behind. noise: too close
to the time of none to tell. All bytes are as predicted without computing.

What tutorials say, and what was measured here
does not hold  It is faster.
               It is slower. It is slower. It is slower. It is slower. It is
               slower. It is slower. It is slower. It is slower.
"""


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut(width: int) -> None:
    text = shown(comparison(), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        pytest.param({}, r"best +still +moves", id="as-it-should-be"),
        pytest.param(
            {"best": {"changed": {"a.weight": 0.0, "a.mean": 1.0, "b.weight": 1.0}}},
            r"best +buffers! +moves",
            id="buffers-move",
        ),
        pytest.param(
            {"best": {"changed": {"a.weight": 1.0, "a.mean": 1.0, "b.weight": 1.0}}},
            r"best +weights! +moves",
            id="weights-move",
        ),
        pytest.param(
            {"best": {"changed": {"a.weight": 0.0, "a.mean": 0.0, "b.weight": 0.0}}},
            r"best +still +still",
            id="nothing-trains",
        ),
    ],
)
def test_what_moved_is_in_the_way_s_row(changes: dict[str, Any], row: str) -> None:
    assert re.search(row, shown(comparison(**changes)))


def test_no_ratio_is_shown_that_is_noise() -> None:
    text = shown(comparison(best={"step_time": seconds(0.010, spread=0.003)}))
    assert re.search(r"grad .*6\.15  0\.50×$", text, re.M)
    assert re.search(r"best .*10  noise$", text, re.M)
    assert "noise: too close to the time of none to tell." in " ".join(text.split())


def test_a_wrong_prediction_is_admitted() -> None:
    wrong = comparison(grad={"activation_bytes": 7}, best={"gradient_bytes": 7})
    right, admitted = (" ".join(shown(found).split()) for found in (comparison(), wrong))
    assert "All bytes are as predicted without computing." in right
    assert "The bytes predicted without computing differ for grad, best (see --json)." in admitted


@pytest.mark.parametrize(
    ("why_not", "kept"),
    [
        pytest.param(None, "once; 1023.0 MiB kept", id="replayed"),
        pytest.param("a hook hangs on it", "once; not here", id="declined"),
    ],
)
def test_replay_is_the_fifth_row(why_not: str | None, kept: str) -> None:
    replayed = Replayed(kept_bytes=1023 << 20, batches=9, is_same=True, why_not=why_not)
    way = replace(result("best"), way="replay", step_time=seconds(0.001), replayed=replayed)
    text = shown(replace(comparison(), ways=(*comparison().ways, way)))
    assert "Five ways to freeze a part of net" in text
    assert re.search(r"^replay +still +moves .* 1 +0\.08×$", text, re.M)
    assert f"replay     best, and fl.replay: what is frozen is computed {kept}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
