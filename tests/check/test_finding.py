from __future__ import annotations

import importlib
from dataclasses import FrozenInstanceError

import pytest
from torch import nn

import frostline as fl
from frostline.check.finding import Hit, rule


def test_a_finding_is_one_line() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    model[0].weight.grad = model[0].weight.detach().clone()
    model[0].requires_grad_(False)
    (finding,) = fl.check(model)
    assert (finding.code, finding.name, finding.where) == ("FL101", "stale-gradient", "0.weight")
    assert finding.severity == "error"
    assert str(finding) == (
        "FL101 0.weight: is frozen but still has a gradient: an optimizer that holds it applies it,"
        " or decay and momentum with it, and clip_grad_norm_ counts it — set its .grad to None;"
        " fl.freeze does, or zero_grad(set_to_none=True) before freezing"
    )


def test_a_finding_does_not_change() -> None:
    finding = fl.Finding(code="FL101", name="n", where="w", message="m", fix="f", severity="error")
    with pytest.raises(FrozenInstanceError):
        finding.code = "FL102"  # type: ignore[misc]


def test_a_hit_may_bring_its_own_mend() -> None:
    @rule("FL199", "made-up", fix="usual")
    def search(context: object) -> list[Hit]:
        """Nothing in particular."""
        return [Hit("a", "bad"), Hit("b", "worse", "special")]

    findings = search.findings(None)  # type: ignore[arg-type]
    assert [f.fix for f in findings] == ["usual", "special"]
    assert search.summary == "Nothing in particular."


def test_importing_the_folder_leaves_the_function_in_place() -> None:
    importlib.import_module("frostline.check")
    assert callable(fl.check)
    assert fl.check.__module__ == "frostline.check.run"


def test_findings_come_in_the_order_of_their_codes() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].weight.grad = model[0].weight.detach().clone()
    model[:2].requires_grad_(False)
    codes = [finding.code for finding in fl.check(model)]
    assert codes == ["FL101", "FL102"]
