"""FL2xx: what the optimizer holds, does not hold, or holds in vain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.check.context import Context, Place
from frostline.check.finding import Hit, rule
from frostline.naming import canonical_keys, tensor_bytes
from frostline.proof.trial import moves_without_gradient
from frostline.units import format_bytes, format_names

# State of torch's optimizers that has the parameter's own shape.
_LABELS = ("params", "name", "param_names", "kept_names")

_OWN_SHAPE = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")


@rule(
    "FL201",
    "not-in-optimizer",
    fix="build the optimizer with fl.optimizer, call fl.sync after a thaw, or freeze the parameter",
)
def not_in_optimizer(context: Context) -> Iterator[Hit]:
    """A trainable parameter is in no optimizer."""
    if not context.optimizers:
        return
    dead = dead_tensors(context)
    for name, parameter in context.trainable.items():
        if id(parameter) not in context.places and name not in dead:
            yield Hit(
                name,
                "requires gradients but is in no optimizer: it never trains, its gradient is"
                " computed all the same and piles up, since zero_grad does not reach it",
            )


@rule(
    "FL202",
    "frozen-with-state",
    severity="warning",
    fix="call fl.sync(model, optimizer) after freezing, or delete optimizer.state[parameter]",
)
def frozen_with_state(context: Context) -> Iterator[Hit]:
    """An optimizer keeps state of a frozen parameter."""
    for name, parameter, place in _frozen_places(context):
        held = _state_tensors(place.optimizer, parameter)
        # fl.sync(state="keep") notes whose state is kept on purpose.
        kept = canonical_keys(list(place.group.get("kept_names", ())))
        if held and not any(_is_called(context.aliases[id(parameter)], label) for label in kept):
            yield Hit(
                name,
                f"is frozen, but {type(place.optimizer).__name__} keeps"
                f" {format_bytes(sum(map(tensor_bytes, held.values())))} of its state"
                f" ({', '.join(held)}): it takes memory and comes back old after a thaw",
            )


@rule(
    "FL203",
    "writes-without-gradient",
    fix="give it only what trains: fl.optimizer(...) without declare_all, anew after each change",
)
def writes_without_gradient(context: Context) -> Iterator[Hit]:
    """An optimizer that moves parameters without a gradient holds frozen ones."""
    holders: dict[str, tuple[Place, list[str]]] = {}
    for name, _, place in _frozen_places(context):
        holders.setdefault(place.where, (place, []))[1].append(name)
    for where, (place, names) in holders.items():
        if writes_blindly(place):
            yield Hit(
                where,
                f"{type(place.optimizer).__name__} moves parameters that have no gradient, and"
                f" holds {format_names(names)}, which {'is' if len(names) == 1 else 'are'} frozen",
            )


@rule(
    "FL204",
    "frozen-with-decay",
    severity="warning",
    fix="build with fl.optimizer, which leaves frozen parameters out or declares them safely",
)
def frozen_with_decay(context: Context) -> Iterator[Hit]:
    """A frozen parameter is in a group with weight decay or momentum."""
    for name, parameter, place in _frozen_places(context):
        # Groups of fl.optimizer are named; it has tried that this optimizer leaves them alone.
        declared = "name" in place.group and "param_names" in place.group
        terms = [
            f"{key}={float(place.group[key]):g}"
            for key in ("weight_decay", "momentum")
            if place.group.get(key)
        ]
        blind = declared or _state_tensors(place.optimizer, parameter)
        if terms and not blind and not writes_blindly(place):
            yield Hit(
                name,
                f"is frozen in a group with {' and '.join(terms)}: one gradient left on it, even of"
                " zeros, and they move it",
            )


@rule(
    "FL205",
    "zero-learning-rate",
    fix="freeze the parameters (fl.freeze) instead of giving them lr=0",
)
def zero_learning_rate(context: Context) -> Iterator[Hit]:
    """A group with learning rate 0 holds parameters that train."""
    seen: set[str] = set()
    for parameter in context.trainable.values():
        for place in context.places.get(id(parameter), ()):
            # Warm-up starts at 0 as well, and remembers the real rate.
            started = float(place.group.get("initial_lr", place.group.get("lr", 1.0)))
            by_hand = _zeroed_by_hand(context, place)
            if (started == 0 or by_hand) and place.where not in seen:
                seen.add(place.where)
                raising = by_hand or _raising(context, place)
                again = f"{raising} raises" if raising else "a scheduler may raise"
                yield Hit(
                    place.where,
                    "has learning rate 0 and parameters that require gradients: all of the backward"
                    f" pass is paid, Rprop moves them, and {again} the rate again",
                )


@rule(
    "FL206",
    "held-twice",
    fix="put it in exactly one group of one optimizer",
)
def held_twice(context: Context) -> Iterator[Hit]:
    """A parameter is in more than one optimizer group, or twice in one."""
    for name, parameter in context.parameters.items():
        places = context.places.get(id(parameter), [])
        if len(places) > 1:
            where = ", ".join(dict.fromkeys(place.where for place in places))
            yield Hit(name, f"is held {len(places)} times ({where}): each step moves it that often")


@rule(
    "FL207",
    "dead-tensor",
    fix="build the optimizer after loading, or load without assign=True",
)
def dead_tensor(context: Context) -> Iterator[Hit]:
    """The optimizer holds a tensor that the model has replaced by another."""
    for name, place in dead_tensors(context).items():
        yield Hit(
            name,
            f"{place.where} holds another tensor in its place, one that the model no longer has"
            " (load_state_dict(assign=True)?): nothing trains it",
        )


@rule(
    "FL208",
    "orphaned-state",
    fix="delete the entry from optimizer.state when the parameter goes; fl.sync does both",
)
def orphaned_state(context: Context) -> Iterator[Hit]:
    """An optimizer keeps state of a parameter that is in none of its groups."""
    for number, optimizer in enumerate(context.optimizers):
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for key in optimizer.state:
            if isinstance(key, Tensor) and id(key) not in held:
                called = "optimizer" if len(context.optimizers) == 1 else f"optimizer[{number}]"
                yield Hit(
                    context.names.get(id(key), f"{called}.state"),
                    f"{type(optimizer).__name__} keeps state of it, but no group holds it:"
                    " optimizer.state_dict() fails with a KeyError at the next checkpoint",
                )


@rule(
    "FL209",
    "state-of-another",
    fix="resume by name: rebuild the optimizer as it was saved, in the same order, then load",
)
def state_of_another(context: Context) -> Iterator[Hit]:
    """An optimizer has a parameter under another's name, or with state of another shape."""
    for key, places in context.places.items():
        name = context.names.get(key)
        if name is None:
            continue
        for place in places:
            label = _label(place)
            if label is not None and not _is_called(context.aliases[key], label):
                yield Hit(
                    name,
                    f"{place.where} has it under the name of {label}: optimizer state is loaded by"
                    " position, and this one has got the state of another parameter",
                )
                continue
            parameter = context.parameters[name]
            for word, state in _state_tensors(place.optimizer, parameter).items():
                if word in _OWN_SHAPE and state.shape != parameter.shape:
                    yield Hit(
                        name,
                        f"has shape {tuple(parameter.shape)}, its {word} {tuple(state.shape)}: the"
                        " optimizer's state was loaded by position and belongs to another",
                    )
                    break


def dead_tensors(context: Context) -> dict[str, Place]:
    """Trainable parameter in no optimizer → the place where its predecessor still is.

    Known by its name where the groups have names, otherwise by shape. An optimizer may well hold
    strangers (a loss with parameters), so a stranger alone is not dead.
    """
    missing = {n: p for n, p in context.trainable.items() if id(p) not in context.places}
    strangers = [
        place
        for key, places in context.places.items()
        if key not in context.names
        for place in places
    ]
    found: dict[str, Place] = {}
    for place in strangers:
        label = _label(place)
        old = place.group["params"][place.rank]
        for name, parameter in missing.items():
            same = old.shape == parameter.shape and old.dtype == parameter.dtype
            called = label is None or _is_called(context.aliases[id(parameter)], label)
            if name not in found and same and called:
                found[name] = place
                break
    return found


def writes_blindly(place: Place) -> bool:
    """Whether this optimizer, with this group's options, moves parameters without a gradient."""
    options = {k: v for k, v in place.group.items() if k not in _LABELS}
    return moves_without_gradient(type(place.optimizer), place.optimizer.defaults, options) is True


def _steering(context: Context, place: Place) -> list[tuple[Any, int]]:
    """The schedulers that steer a place's group, with the rank that the group has for them."""
    rank = next(n for n, g in enumerate(place.optimizer.param_groups) if g is place.group)
    return [(s, rank) for s in context.schedulers if getattr(s, "optimizer", 0) is place.optimizer]


def _zeroed_by_hand(context: Context, place: Place) -> str | None:
    """The scheduler that had set another rate than the 0 that a group has now; or None."""
    steering = _steering(context, place)
    # All of them: one that waits inside SequentialLR remembers a rate from before.
    if float(place.group.get("lr", 1.0)) != 0 or not steering:
        return None
    set_rates = [list(getattr(scheduler, "_last_lr", ())) for scheduler, _ in steering]
    given = (
        rank < len(rates) and float(rates[rank]) != 0
        for rates, (_, rank) in zip(set_rates, steering, strict=True)
    )
    return type(steering[0][0]).__name__ if all(given) else None


def _raising(context: Context, place: Place) -> str | None:
    """The scheduler that lifts a group from a rate of 0 to its own least or highest; or None."""
    for scheduler, rank in _steering(context, place):
        rates = list(getattr(scheduler, "max_lrs", ()))
        top = rates[rank] if rank < len(rates) else getattr(scheduler, "eta_min", 0)
        if float(top) > 0:
            return type(scheduler).__name__
    return None


def _frozen_places(context: Context) -> Iterator[tuple[str, nn.Parameter, Place]]:
    for name, parameter in context.frozen.items():
        for place in context.places.get(id(parameter), ()):
            yield name, parameter, place


def _state_tensors(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The state that an optimizer has of a parameter, its step counter left out."""
    state: dict[Any, Any] = optimizer.state.get(parameter, {})
    return {str(k): v for k, v in state.items() if isinstance(v, Tensor) and k != "step"}


def _label(place: Place) -> str | None:
    """The name under which the group has the parameter, if it has names."""
    names = place.group.get("param_names")
    if not names or len(names) != len(place.group["params"]):
        return None
    return canonical_keys(list(names))[place.rank]


def _is_called(aliases: set[str], label: str) -> bool:
    # Names may have been taken from a part of the model, or from a wrapper around it.
    return any(a == label or a.endswith(f".{label}") or label.endswith(f".{a}") for a in aliases)


RULES = (
    not_in_optimizer,
    frozen_with_state,
    writes_without_gradient,
    frozen_with_decay,
    zero_learning_rate,
    held_twice,
    dead_tensor,
    orphaned_state,
    state_of_another,
)
