"""FL4xx: flags, ties, names and kinds of tensors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from frostline.check.context import Context
from frostline.check.finding import Hit, rule
from frostline.naming import TensorGroup

_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)")


@rule(
    "FL401",
    "nothing-trains",
    fix="unfreeze a part (fl.unfreeze(model, 'head')), and skip DDP and GradScaler for a teacher",
)
def nothing_trains(context: Context) -> Iterator[Hit]:
    """No parameter of the model requires gradients."""
    if context.parameters and not context.trainable and not context.uninitialised:
        yield Hit(
            type(context.model).__name__,
            f"all {len(context.parameters)} parameters are frozen: backward() fails, as do"
            " GradScaler.step and DistributedDataParallel",
        )


@rule(
    "FL402",
    "cut-tie",
    fix="freeze or train both; or clone one, so that each has memory of its own",
)
def cut_tie(context: Context) -> Iterator[Hit]:
    """Two parameters lie on one memory, one frozen and one training."""
    for group in context.inventory.groups:
        frozen = [name for name, p in group.named.items() if not p.requires_grad]
        trained = [name for name, p in group.named.items() if p.requires_grad]
        if frozen and trained:
            yield Hit(
                frozen[0],
                f"is frozen but lies on the same memory as {trained[0]}, which trains: every step"
                " moves both",
            )


@rule(
    "FL403",
    "misplaced-flag",
    fix="call module.requires_grad_(False), or set parameter.requires_grad; fl.freeze does both",
)
def misplaced_flag(context: Context) -> Iterator[Hit]:
    """An attribute that only looks like requires_grad was set on a module or parameter."""
    for part in context.parts:
        for key, value in vars(part.module).items():
            if isinstance(value, bool) and _looks_like_flag(key):
                yield Hit(
                    part.name or type(part.module).__name__,
                    f"has a plain attribute {key}={value}, which freezes and thaws nothing: on a"
                    " module only the method requires_grad_() does",
                )
    for name, parameter in context.parameters.items():
        for key, value in getattr(parameter, "__dict__", {}).items():
            if isinstance(value, bool) and _looks_like_flag(key):
                yield Hit(
                    name,
                    f"has a plain attribute {key}={value}, which freezes and thaws nothing: the"
                    " flag is called requires_grad",
                )


@rule(
    "FL404",
    "over-matching-name",
    severity="warning",
    fix="select by whole components (fl.freeze(model, 'layer1')), or end the pattern with a dot",
)
def over_matching_name(context: Context) -> Iterator[Hit]:
    """What is frozen looks like a name pattern that matched too much: layer1 and layer10."""
    # A plan shows its patterns, and pattern-cuts-number reads them.
    siblings = {} if context.plan is not None else _numbered_siblings(context)
    for stem, flags in siblings.items():
        frozen = {number for number, states in flags.items() if states == {False}}
        for number in sorted(frozen, key=int):
            alike = {other for other in flags if other.startswith(number)}
            if len(alike) > 1 and alike == frozen and len(frozen) < len(flags):
                extra = ", ".join(f"{stem}{n}" for n in sorted(alike - {number}, key=int))
                yield Hit(
                    f"{stem}{number}",
                    f"is frozen, and so are just those whose names begin with it ({extra}): a"
                    " pattern for the one seems to have matched the others",
                )


@rule(
    "FL405",
    "inference-tensor",
    fix="build, load and compute under torch.no_grad() instead of torch.inference_mode()",
)
def inference_tensor(context: Context) -> Iterator[Hit]:
    """A parameter, a buffer, the example or what a forward computes is made in inference_mode."""
    tensors = [(a.name, a.tensor) for g in context.inventory.groups for a in g.aliases]
    tensors += [(alias.name, alias.tensor) for alias in context.inventory.buffers]
    # A lazy parameter refuses every question.
    made = [name for name, tensor in tensors if not is_lazy(tensor) and tensor.is_inference()]
    for name in [*made, *(context.probe.unusable if context.probe else ())]:
        yield Hit(
            name,
            "was made under torch.inference_mode(): the first layer that trains on it fails, since"
            " it can't be saved for backward",
        )
    inferring = context.probe.inferring if context.probe is not None else None
    if inferring is not None:
        yield Hit(
            inferring or type(context.model).__name__,
            "enters torch.inference_mode() in its forward: what it computes there can't be saved"
            " for backward, so nothing can train on it",
            "enter torch.no_grad() there instead, which saves as much memory",
        )


@rule(
    "FL406",
    "uninitialised",
    fix="run one batch through the model first; then freeze, and build the optimizer",
)
def uninitialised(context: Context) -> Iterator[Hit]:
    """A lazy module's parameter has no shape yet."""
    for name in context.uninitialised:
        yield Hit(name, "has no shape yet (a lazy module): it can't be frozen, counted or stepped")


@rule(
    "FL407",
    "half-frozen-weight",
    severity="warning",
    fix="freeze both or neither: the weight that forward uses is computed from the two",
)
def half_frozen_weight(context: Context) -> Iterator[Hit]:
    """weight_norm splits a weight in two; one half is frozen and the other trains."""
    for part in context.parts:
        own = {k: p for k, p in part.module._parameters.items() if p is not None}
        pairs = [(key, f"{key[:-2]}_v") for key in own if key.endswith("_g")]
        pairs += [("original0", "original1")]
        for one, other in pairs:
            if one in own and other in own and own[one].requires_grad != own[other].requires_grad:
                halves = (one, other) if not own[one].requires_grad else (other, one)
                prefix = f"{part.name}." if part.name else ""
                yield Hit(
                    prefix + halves[0],
                    f"is frozen, but its other half {prefix}{halves[1]} trains: the weight moves",
                )


@rule(
    "FL408",
    "second-copy-trains",
    severity="warning",
    fix="freeze original_module; only the copy in modules_to_save is used",
)
def second_copy_trains(context: Context) -> Iterator[Hit]:
    """The original of a module that PEFT has copied for training trains as well."""
    for part in context.parts:
        original = part.module._modules.get("original_module")
        if original is None or "modules_to_save" not in part.module._modules:
            continue
        if any(p.requires_grad for p in original.parameters()):
            yield Hit(
                f"{part.name}.original_module".lstrip("."),
                "requires gradients, but forward uses the copy in modules_to_save: a selector has"
                " matched both",
            )


def _looks_like_flag(key: str) -> bool:
    return difflib.SequenceMatcher(None, key, "requires_grad").ratio() > 0.85


def _numbered_siblings(context: Context) -> dict[str, dict[str, set[bool]]]:
    """``layers.`` or ``layer`` → number as written → the flags of all parameters below."""
    found: dict[str, dict[str, set[bool]]] = {}
    for group in context.inventory.groups:
        for name, trains in _states(group):
            components = name.split(".")[:-1]
            for depth, component in enumerate(components):
                match = _NUMBERED.fullmatch(component)
                if match is not None:
                    stem = ".".join([*components[:depth], match["stem"]])
                    found.setdefault(stem, {}).setdefault(match["number"], set()).add(trains)
    return found


def _states(group: TensorGroup) -> list[tuple[str, bool]]:
    trains = any(
        isinstance(a.tensor, nn.Parameter) and a.tensor.requires_grad for a in group.aliases
    )
    return [(alias.name, trains) for alias in group.aliases]


RULES = (
    nothing_trains,
    cut_tie,
    misplaced_flag,
    over_matching_name,
    inference_tensor,
    uninitialised,
    half_frozen_weight,
    second_copy_trains,
)
