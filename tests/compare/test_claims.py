"""Both outcomes of every claim, from comparisons that are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from frostline.compare.claims import weigh
from frostline.compare.comparison import Comparison, Replayed, Way, WayResult
from frostline.measure import Prediction, StepTime


def seconds(median: float, spread: float = 0.01) -> StepTime:
    return StepTime(
        median_seconds=median,
        low_seconds=median * (1 - spread),
        high_seconds=median * (1 + spread),
        repeats=9,
    )


def result(way: Way, **changes: Any) -> WayResult:
    """Two tensors: ``a`` frozen, ``b`` trained; AdamW-like state; ``a.mean`` a buffer of a's."""
    frozen = way in ("grad", "best")
    base = WayResult(
        way=way,
        changed={"a": 0.5 if way == "none" else 0.0, "a.mean": 0.0, "b": 0.25},
        requires_grad={"a": not frozen, "b": True},
        gradient_bytes=2048 if frozen else 4096,
        leftover_gradient_bytes=2048 if way == "optimizer" else 0,
        optimizer_state_bytes=8192 if way == "none" else 4096,
        activation_bytes=1024 if frozen else 3072,
        step_time=seconds(0.010 if frozen else 0.020),
        predicted=Prediction(
            gradient_bytes=0,
            optimizer_state_bytes=0,
            activation_bytes=0,
            forward_flops=0,
            backward_flops=0,
        ),
    )
    return replace(base, **changes)


def comparison(*, late: int = 8192, **changes: dict[str, Any]) -> Comparison:
    ways: tuple[Way, ...] = ("none", "grad", "optimizer", "best")
    return Comparison(
        ways=tuple(result(way, **changes.get(way, {})) for way in ways),
        frozen=("a",),
        frozen_buffers=("a.mean",),
        trained=("b",),
        late_state_bytes=late,
        steps=10,
    )


ALL_MOVE, WAY_ONE, WAY_TWO, PILE_UP, BEST, MEMORY, STATE, SPEED = range(8)


@pytest.mark.parametrize(
    ("found", "claim", "verdict", "measured"),
    [
        pytest.param(
            comparison(), ALL_MOVE, "holds", "All 2 tensors of weights moved.", id="all-move"
        ),
        pytest.param(
            comparison(none={"changed": {"a": 0.0, "a.mean": 0.0, "b": 0.25}}),
            ALL_MOVE,
            "does not hold",
            "a did not move.",
            id="one-does-not-move",
        ),
        *(
            pytest.param(
                comparison(),
                claim,
                "holds",
                "The frozen weights moved by exactly 0, and so did the 1 buffers of the frozen "
                "layers.",
                id=f"still-{claim}",
            )
            for claim in (WAY_ONE, WAY_TWO, BEST)
        ),
        *(
            pytest.param(
                comparison(**{way: {"changed": {"a": 0.0, "a.mean": 0.125, "b": 0.25}}}),
                claim,
                "holds in part",
                "The frozen weights moved by exactly 0, but 1 buffers of the frozen layers moved, "
                "a.mean by 0.12: running statistics follow the batches until the layer is in eval "
                "mode.",
                id=f"buffers-move-{way}",
            )
            for way, claim in (("grad", WAY_ONE), ("optimizer", WAY_TWO), ("best", BEST))
        ),
        pytest.param(
            comparison(grad={"changed": {"a": 0.1, "a.mean": 0.0, "b": 0.0}}),
            WAY_ONE,
            "does not hold",
            "a moved although frozen, and so did the 1 buffers of the frozen layers; b should "
            "train and did not move.",
            id="wrong-part-moves",
        ),
        pytest.param(
            comparison(),
            PILE_UP,
            "holds",
            "4.0 KiB of gradients, as with nothing frozen; 2.0 KiB outlive optimizer.zero_grad(), "
            "and each backward adds to them.",
            id="pile-up",
        ),
        pytest.param(
            comparison(optimizer={"gradient_bytes": 2048, "leftover_gradient_bytes": 0}),
            PILE_UP,
            "does not hold",
            "2.0 KiB of gradients, 4.0 KiB with nothing frozen; none outlive "
            "optimizer.zero_grad().",
            id="no-pile-up",
        ),
        pytest.param(
            comparison(),
            MEMORY,
            "holds",
            "Gradients 4.0 KiB → 2.0 KiB, optimizer state 8.0 KiB → 4.0 KiB, activations 3.0 KiB "
            "→ 1.0 KiB.",
            id="less-of-all",
        ),
        pytest.param(
            comparison(none={"optimizer_state_bytes": 0}, best={"optimizer_state_bytes": 0}),
            MEMORY,
            "holds in part",
            "Gradients 4.0 KiB → 2.0 KiB, optimizer state 0 B in both, activations 3.0 KiB → "
            "1.0 KiB.",
            id="less-of-some",
        ),
        pytest.param(
            comparison(
                best={"gradient_bytes": 4096, "optimizer_state_bytes": 9216},
                none={"activation_bytes": 1024},
            ),
            MEMORY,
            "does not hold",
            "Gradients 4.0 KiB in both, optimizer state 8.0 KiB → 9.0 KiB, activations 1.0 KiB in "
            "both.",
            id="less-of-nothing",
        ),
        pytest.param(
            comparison(),
            STATE,
            "does not hold",
            "Optimizer state 4.0 KiB in both: none is made for a parameter that never has a "
            "gradient. If the freeze comes after the first step, way one still keeps 8.0 KiB.",
            id="same-state",
        ),
        pytest.param(
            comparison(grad={"optimizer_state_bytes": 8192}),
            STATE,
            "holds",
            "Optimizer state 8.0 KiB in way one, 4.0 KiB in best. If the freeze comes after the "
            "first step, way one still keeps 8.0 KiB.",
            id="an-optimizer-with-state-for-all",
        ),
        pytest.param(
            comparison(
                late=0, grad={"optimizer_state_bytes": 0}, best={"optimizer_state_bytes": 0}
            ),
            STATE,
            "does not hold",
            "This optimizer keeps no state, so there is none to save.",
            id="no-state",
        ),
        pytest.param(
            comparison(),
            SPEED,
            "holds",
            "A step takes 20 ms with nothing frozen, 10 ms in way one, 10 ms in best.",
            id="faster",
        ),
        pytest.param(
            comparison(best={"step_time": seconds(0.030)}),
            SPEED,
            "does not hold",
            "A step takes 20 ms with nothing frozen, 10 ms in way one, 30 ms in best.",
            id="slower",
        ),
        pytest.param(
            comparison(best={"step_time": seconds(0.019, spread=0.5)}),
            SPEED,
            "within noise",
            "A step takes 20 ms with nothing frozen, 10 ms in way one, 19 ms in best. Too close "
            "to tell: the middle halves of the times overlap.",
            id="too-close",
        ),
        pytest.param(
            comparison(
                none={"step_time": seconds(0.0002)},
                grad={"step_time": seconds(0.0001)},
                best={"step_time": seconds(0.0001)},
            ),
            SPEED,
            "holds",
            "A step takes 200 µs with nothing frozen, 100 µs in way one, 100 µs in best. A step "
            "this short is mostly overhead: judge speed on a larger network.",
            id="mostly-overhead",
        ),
    ],
)
def test_claims(found: Comparison, claim: int, verdict: str, measured: str) -> None:
    weighed = weigh(found)
    assert len(weighed) == 8
    assert (weighed[claim].verdict, weighed[claim].measured) == (verdict, measured)


def test_long_lists_of_names_are_cut() -> None:
    names = tuple("abcde")
    found = replace(
        comparison(none={"changed": dict.fromkeys((*names, "z"), 0.0) | {"z": 1.0}}),
        frozen=names,
        trained=("z",),
    )
    found = replace(
        found, ways=tuple(replace(r, changed=found["none"].changed) for r in found.ways),
        frozen_buffers=(),
    )  # fmt: skip
    assert weigh(found)[ALL_MOVE].measured == "a, b, c and 2 more did not move."


def with_replay(
    seconds_of_step: StepTime, *, is_same: bool = True, why_not: str | None = None
) -> Comparison:
    replayed = Replayed(kept_bytes=2048, batches=30, is_same=is_same, why_not=why_not)
    way = replace(result("best"), way="replay", step_time=seconds_of_step, replayed=replayed)
    return replace(comparison(), ways=(*comparison().ways, way))


@pytest.mark.parametrize(
    ("found", "verdict", "measured"),
    [
        pytest.param(
            with_replay(seconds(0.002)),
            "holds",
            "Once all batches are recorded (2.0 KiB), a step takes 2 ms in replay, 10 ms in best; "
            "the weights are the same, bit for bit.",
            id="faster",
        ),
        pytest.param(
            with_replay(seconds(0.030)),
            "does not hold",
            "Once all batches are recorded (2.0 KiB), a step takes 30 ms in replay, 10 ms in best; "
            "the weights are the same, bit for bit.",
            id="slower",
        ),
        pytest.param(
            with_replay(seconds(0.009, spread=0.5)),
            "within noise",
            "Once all batches are recorded (2.0 KiB), a step takes 9 ms in replay, 10 ms in best; "
            "the weights are the same, bit for bit. Too close to tell: the middle halves of the "
            "times overlap.",
            id="too-close",
        ),
        pytest.param(
            with_replay(seconds(0.002), is_same=False),
            "does not hold",
            "Once all batches are recorded (2.0 KiB), a step takes 2 ms in replay, 10 ms in best; "
            "the weights are not the same.",
            id="other-weights",
        ),
        pytest.param(
            with_replay(seconds(0.002), why_not="it draws random numbers"),
            "does not hold",
            "Nothing was replayed here: it draws random numbers.",
            id="declined",
        ),
    ],
)
def test_the_claim_of_replay(found: Comparison, verdict: str, measured: str) -> None:
    *_, claim = weigh(found)
    assert claim.says.startswith("Replay is faster than best")
    assert (claim.verdict, claim.measured) == (verdict, measured)
