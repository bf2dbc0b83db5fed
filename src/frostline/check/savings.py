"""FL5xx: freezing that costs as much as training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from frostline.check.blockers import early_blockers
from frostline.check.context import Context
from frostline.check.finding import Hit, rule
from frostline.units import format_bytes

_WORTH_SAYING = 0.2
"""Share of the activations that freezing the early tensors must save."""


@rule(
    "FL501",
    "early-trainable",
    severity="warning",
    fix="freeze it as well, unless it is meant to train",
)
def early_trainable(context: Context) -> Iterator[Hit]:
    """Trainable tensors before a frozen part keep all of it in the graph."""
    kept = context.probe.kept if context.probe is not None else None
    if context.probe is not None and context.probe.failure is None:
        if kept and kept.bytes_without <= kept.bytes_with * (1 - _WORTH_SAYING):
            them = "it" if len(kept.blockers) == 1 else "them"
            yield Hit(
                kept.blockers[0],
                f"{_trains(kept.blockers)} ahead of {kept.behind} frozen tensors, which gradients"
                f" must cross to reach {them}: a step keeps {format_bytes(kept.bytes_with)} of"
                f" activations, {format_bytes(kept.bytes_without)} without {them}",
            )
        return
    found = early_blockers([(n, p.requires_grad) for n, p in context.parameters.items()])
    if found.blockers:
        yield Hit(
            found.blockers[0],
            f"{_trains(found.blockers)} ahead of {found.behind} frozen tensors of"
            f" {len(context.parameters)}, which gradients must cross: their activations are kept"
            " (pass example= to measure)",
        )


@rule(
    "FL502",
    "input-requires-grad",
    severity="warning",
    fix="detach the input, and drop hooks such as enable_input_require_grads()",
)
def input_requires_grad(context: Context) -> Iterator[Hit]:
    """The input, or what a hook makes of it, requires grad and keeps a frozen part in the graph."""
    if context.probe is None or not context.frozen:
        return
    consequence = "gradients are carried through the frozen part, and its activations kept"
    if context.probe.input_grad:
        yield Hit("example", f"requires grad: {consequence}")
    elif context.probe.grafted is not None:
        yield Hit(
            context.probe.grafted,
            f"is frozen, but its output requires grad on its own (a hook?): {consequence}",
        )


@rule(
    "FL503",
    "gradient-hook",
    fix="freeze the tensor (fl.freeze), or some of its rows (fl.freeze_rows)",
)
def gradient_hook(context: Context) -> Iterator[Hit]:
    """A hook zeroes a parameter's gradient, or rows of it, in place of freezing."""
    for name, share in (context.probe.wiped if context.probe is not None else {}).items():
        part = "the gradient" if share == 1 else f"{share:.0%} of the gradient"
        yield Hit(
            name,
            f"a hook zeroes {part}: nothing is saved, weight decay and momentum still move it, and"
            " deepcopy or assign=True loses the hook",
        )


@rule(
    "FL504",
    "reentrant-checkpoint",
    fix="checkpoint with use_reentrant=False",
)
def reentrant_checkpoint(context: Context) -> Iterator[Hit]:
    """Reentrant checkpointing behind a frozen layer gives no gradients."""
    if context.probe is not None and context.probe.reentrant:
        for name in context.probe.unreached:
            yield Hit(
                name,
                "gets no gradient: checkpointing with use_reentrant=True works only if an input"
                " requires grad, and what a frozen part gives does not",
            )


def _trains(blockers: Sequence[str]) -> str:
    more = len(blockers) - 1
    return f"trains, like {more} more, and lies" if more else "trains"


RULES = (early_trainable, input_requires_grad, gradient_hook, reentrant_checkpoint)
