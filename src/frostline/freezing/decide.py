"""What a plan means for one model: for each tensor group, freeze, train, or neither."""

from __future__ import annotations

from torch import nn

from frostline.errors import PlanError
from frostline.freezing.flags import can_train
from frostline.freezing.plan import Action, Plan
from frostline.naming import Inventory, TensorGroup
from frostline.selection.patterns import Matches


def decide(plan: Plan, inventory: Inventory) -> dict[int, Action]:
    """Index of a tensor group → what the last rule that matches it says.

    Raises:
        SelectorError: a rule matches nothing.
        PlanError: two rules are at odds about a tied tensor, each under a name of its own.
    """
    winners: dict[int, int] = {}
    matches = [rule.select.find(inventory) for rule in plan.rules]
    for number, found in enumerate(matches):
        winners.update(dict.fromkeys(found, number))
    for index, winner in winners.items():
        group = inventory.groups[index]
        if len(group.aliases) > 1:
            _refuse_odds(plan, matches, group, index, winner)
    return {index: plan.rules[winner].action for index, winner in winners.items()}


def live_groups(inventory: Inventory, decisions: dict[int, Action]) -> list[TensorGroup]:
    """The groups that train once the decisions are carried out."""
    return [
        group
        for index, group in enumerate(inventory.groups)
        if (decided := decisions.get(index)) != "freeze"
        and any(
            p.requires_grad or (decided == "train" and can_train(p)) for p in group.named.values()
        )
    ]


def refuse_nothing_to_train(
    model: nn.Module, inventory: Inventory, decisions: dict[int, Action]
) -> None:
    """Raise PlanError if the decisions freeze something and leave nothing trainable."""
    if "freeze" in decisions.values() and not live_groups(inventory, decisions):
        raise PlanError(
            f"this leaves nothing to train: all {len(inventory.groups)} tensors of"
            f" {type(model).__name__} would be frozen. Leave a part trainable (all_but='head' in"
            " Python, --train head on the command line), or say everything=True if that is meant"
        )


def _refuse_odds(
    plan: Plan, matches: list[Matches], group: TensorGroup, index: int, winner: int
) -> None:
    """A later rule overrides an earlier one that is more general, or that it covers by name.

    But if each matches the tensor under a name that the other does not have in mind, whoever
    wrote the plan takes one tensor for two.
    """
    wins = matches[winner][index]
    for number, found in enumerate(matches[:winner]):
        rule, last = plan.rules[number], plan.rules[winner]
        loses = found.get(index)
        if loses is None or rule.action == last.action or loses <= wins or wins <= loses:
            continue
        names = {alias.position: alias.name for alias in group.aliases}
        one, other = names[min(loses - wins)], names[min(wins - loses)]
        raise PlanError(
            f"rules at odds: '{rule}' is about {one} and '{last}' about {other}, but the two are"
            " tied (one memory): they can only be frozen or trained together. Name both in one"
            " rule, or drop one of the rules"
        )
