"""What only a step on an example batch can show."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.check.context import Context
from frostline.check.finding import Hit, rule
from frostline.check.modes import active_dropout, moving_statistics, observing, power_iterating
from frostline.check.values import renormalised_embedding


@rule(
    "FL001",
    "probe-failed",
    fix="pass a batch that model(example), model(*example) or model(**example) takes, and loss=",
)
def probe_failed(context: Context) -> Iterator[Hit]:
    """The step on the example batch could not be done."""
    if context.probe is not None and context.probe.failure is not None:
        yield Hit("example", f"a step on it raised {context.probe.failure}")


@rule(
    "FL110",
    "written-in-forward",
    fix="find the code that writes it, and keep it from running while the module is frozen",
)
def written_in_forward(context: Context) -> Iterator[Hit]:
    """The forward pass wrote a frozen parameter, or a buffer of a frozen module."""
    explained = {hit.where for hit in moving_statistics.search(context)}
    explained |= {hit.where for hit in renormalised_embedding.search(context)}
    explained |= {part.name for part in (*observing(context), *power_iterating(context))}
    for name in context.probe.moved if context.probe is not None else ():
        owner = name.rpartition(".")[0]
        if not any(owner == known or owner.startswith(f"{known}.") for known in explained):
            yield Hit(name, "is frozen, and the forward pass rewrote it")


@rule(
    "FL111",
    "unsteady-output",
    severity="warning",
    fix="make the random operation obey its own module's training flag, then freeze that module",
)
def unsteady_output(context: Context) -> Iterator[Hit]:
    """A frozen part gives another output each time it is run."""
    if context.probe is None:
        return
    explained = tuple(f"{hit.where}." for hit in active_dropout.search(context))
    for name in context.probe.unsteady:
        if not any(known.startswith(f"{name}.") or known == f"{name}." for known in explained):
            yield Hit(
                name,
                "is frozen, and gave two different outputs for one input: a random operation in it"
                " is on, such as a functional dropout",
            )
    if context.probe.unsteady_input is not None:
        yield Hit(
            context.probe.unsteady_input,
            "is frozen, and is fed differently in two runs although nothing trains before it: a"
            " random operation between modules is on, such as a functional dropout",
        )


@rule(
    "FL112",
    "zeroed-padding",
    severity="warning",
    fix="build the encoder with enable_nested_tensor=False, or mask padded positions in the loss",
)
def zeroed_padding(context: Context) -> Iterator[Hit]:
    """A frozen nn.TransformerEncoder took its fast path and zeroed padded positions."""
    for name in context.probe.zeroed_padding if context.probe is not None else ():
        yield Hit(
            name,
            "in eval mode nn.TransformerEncoder takes a fast path that returns zeros at padded"
            " positions, unlike in train mode",
        )


@rule(
    "FL210",
    "no-gradient",
    fix="freeze it, or use it in the forward pass that the loss depends on",
)
def no_gradient(context: Context) -> Iterator[Hit]:
    """No gradient reaches a trainable parameter."""
    # The rule for reentrant checkpointing has already named them all.
    if context.probe is not None and not context.probe.reentrant:
        for name in context.probe.unreached:
            yield Hit(
                name,
                "requires gradients, and none reaches it: the loss does not depend on it (unused,"
                " detached, or computed under no_grad)",
            )


RULES = (
    probe_failed,
    written_in_forward,
    unsteady_output,
    zeroed_padding,
    no_gradient,
)
