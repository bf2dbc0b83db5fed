"""A freeze written down by name, and brought back on a model that is the same.

Flags are in no checkpoint, and positions prove nothing: a resumed run that freezes another layer
of the same shape trains without a word. So the state holds every parameter's name, shape and
flag, and the fingerprint of what is frozen; a model that does not fit is refused before anything
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from frostline.collector import collector_paused
from frostline.errors import PlanError, SelectorError
from frostline.freezing.boundary import PendingGradients, settle_gradients
from frostline.freezing.drift import refuse_drift
from frostline.freezing.flags import Wish
from frostline.freezing.frozen import Frozen, follow_shards
from frostline.freezing.modes import pin_of
from frostline.freezing.plan import Action, Plan, Rule
from frostline.naming import Inventory, take_inventory
from frostline.proof.fingerprint import whole_fingerprint
from frostline.selection import glob

_VERSION = 1


def freeze_state(frozen: Frozen) -> dict[str, Any]:
    """What :func:`resume_freeze` needs; plain types alone, for JSON and ``torch.load``.

    See :meth:`frostline.Frozen.state_dict`.
    """
    inventory = take_inventory(frozen.model)
    held = set(frozen.names)
    prints = frozen.fingerprints()
    return {
        "frostline": _VERSION,
        "plan": _written(frozen),
        "parameters": {
            alias.name: {
                "shape": list(alias.tensor.shape),
                "dtype": str(alias.tensor.dtype),
                "trainable": alias.tensor.requires_grad,
                "frozen": prints[alias.name] if alias.name in held else None,
            }
            for group in inventory.groups
            for alias in group.firsts
        },
        "buffers": {name: prints[name] for name in frozen.buffers},
        "pinned": [placed.name for placed in inventory.placements if pin_of(placed.module)],
        "pin_eval": frozen.wish.eval_mode,
        "pinned_besides": list(frozen.pinned_besides),
        "hold_statistics": frozen.wish.held_buffers,
    }


@collector_paused()
def resume_freeze(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    repair: bool = False,
    gradients: PendingGradients = "refuse",
) -> Frozen:
    """Freeze a model as ``state`` says, if it is the model that the state was taken from.

    Load the weights first. Afterwards each parameter has the flag that it had.

    Args:
        model: the model, wrapped or not.
        state: what :meth:`frostline.Frozen.state_dict` returned.
        repair: accept names that all gained or lost one and the same prefix, as when the model
            was put into another; ``.repairs`` of the handle says what was mapped.
        gradients: in the middle of a step, with gradients pending: ``refuse``, or ``drop`` them.

    Raises:
        PlanError: (a ValueError) names, shapes, dtypes or frozen content differ; the first
            differences are named. Or ``state`` is no such state.
        TransitionError: (a RuntimeError) gradients are pending.
        In each case nothing has changed.

    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> state = fl.freeze(model, "0").state_dict()
    >>> again = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> _ = again.load_state_dict(model.state_dict())
    >>> fl.resume_freeze(again, state).names
    ('0.weight', '0.bias')
    """
    saved = _checked(state)
    follow_shards(model)
    inventory = take_inventory(model)
    present = {alias.name: alias.tensor for group in inventory.groups for alias in group.firsts}
    present |= {alias.name: alias.tensor for alias in inventory.buffers}
    renamed = _renaming([*saved["parameters"], *saved["buffers"]], set(present)) if repair else {}
    differences = _differences(saved, inventory, renamed)
    if differences:
        raise PlanError(_refusal(differences, repair))
    decisions = _decisions(saved, inventory, renamed)
    refuse_drift(model, (inventory.groups[i] for i, act in decisions.items() if act == "train"))
    settle_gradients(inventory, gradients)
    frozen = Frozen(
        model,
        Plan.parse(saved["plan"], source="the saved freeze"),
        inventory,
        decisions,
        wish=Wish(eval_mode=saved["pin_eval"], held_buffers=saved["hold_statistics"]),
        also_pinned=_groups_of(inventory, {renamed.get(n, n) for n in saved["pinned_besides"]}),
    )
    frozen.repairs = tuple(f"{old} → {new}" for old, new in renamed.items())
    return frozen


def _written(frozen: Frozen) -> str:
    """The plan as YAML; one that selects by functions or objects, as the names that it froze."""
    try:
        return frozen.plan.to_yaml()
    except SelectorError:
        rule = Rule(action="freeze", select=[glob(name) for name in frozen.names or ("**",)])
        return Plan(rules=[rule]).to_yaml()


def _checked(state: Mapping[str, Any]) -> Mapping[str, Any]:
    keys = {"frostline", "plan", "parameters", "buffers", "pinned_besides", "pin_eval"}
    missing = sorted({*keys, "hold_statistics"} - set(state))
    if missing or state["frostline"] != _VERSION:
        raise PlanError(
            "this is no saved freeze (what frozen.state_dict() returns, version"
            f" {_VERSION}): missing {missing}, version {state.get('frostline')!r}"
        )
    return state


def _renaming(saved: list[str], present: set[str]) -> dict[str, str]:
    """Old name → new name, if one prefix for all was added or taken away; else nothing."""
    if set(saved) <= present or not saved:
        return {}
    first = saved[0]
    for name in sorted(present):
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            renamed = {old: prefix + old for old in saved}
        elif first.endswith(f".{name}"):
            prefix = first.removesuffix(name)
            renamed = {old: old.removeprefix(prefix) for old in saved}
        else:
            continue
        if set(renamed.values()) <= present:
            return renamed
    return {}


def _differences(
    saved: Mapping[str, Any], inventory: Inventory, renamed: Mapping[str, str]
) -> list[str]:
    parameters = {alias.name: alias.tensor for g in inventory.groups for alias in g.firsts}
    expected = {renamed.get(name, name): entry for name, entry in saved["parameters"].items()}
    found = [f"{name}: not in the model" for name in expected if name not in parameters]
    found += [f"{name}: not in the saved freeze" for name in parameters if name not in expected]
    for name, entry in expected.items():
        tensor = parameters.get(name)
        if tensor is None:
            continue
        was, now = (entry["shape"], entry["dtype"]), (list(tensor.shape), str(tensor.dtype))
        if was != now:
            found.append(f"{name}: saved as {was[1]} {was[0]}, is {now[1]} {now[0]}")
        elif entry["frozen"] is not None and entry["frozen"] != whole_fingerprint(tensor):
            found.append(f"{name}: its content is not what was frozen")
    buffers = {alias.name: alias.tensor for alias in inventory.buffers}
    for saved_name, digest in saved["buffers"].items():
        name = renamed.get(saved_name, saved_name)
        if name not in buffers:
            found.append(f"{name}: not in the model")
        elif digest != whole_fingerprint(buffers[name]):
            found.append(f"{name}: its content is not what was frozen")
    return found


def _refusal(differences: list[str], repair: bool) -> str:
    lines = [f"the saved freeze does not fit this model, {len(differences)} differences:"]
    lines += [f"  {difference}" for difference in differences[:5]]
    lines.append(
        "Nothing was changed. Load the run's weights before its freeze"
        + ("" if repair else "; if every name gained or lost one prefix, pass repair=True")
    )
    return "\n".join(lines)


def _decisions(
    saved: Mapping[str, Any], inventory: Inventory, renamed: Mapping[str, str]
) -> dict[int, Action]:
    """Freeze what was frozen by the call; of the rest, set only flags that differ."""
    entries = {renamed.get(name, name): entry for name, entry in saved["parameters"].items()}
    decisions: dict[int, Action] = {}
    for index, group in enumerate(inventory.groups):
        for name, parameter in group.named.items():
            entry = entries[name]
            if entry["frozen"] is not None:
                decisions[index] = "freeze"
            elif entry["trainable"] != parameter.requires_grad:
                decisions.setdefault(index, "train" if entry["trainable"] else "freeze")
    return decisions


def _groups_of(inventory: Inventory, names: set[str]) -> list[int]:
    return [i for i, group in enumerate(inventory.groups) if names & set(group.named)]
