"""FL4xx: a plan beside the model that is to follow it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.check.context import Context
from frostline.check.finding import Hit, rule
from frostline.errors import FrostlineError
from frostline.freezing.decide import decide
from frostline.freezing.flags import can_train
from frostline.freezing.plan import Action
from frostline.selection import Selector
from frostline.selection.patterns import GLOB_CHARACTERS, Glob, Regex, glob_to_regex
from frostline.selection.selector import AllOf, AnyOf, Not


@rule(
    "FL409",
    "plan-not-kept",
    fix="apply it: fl.freeze(model, plan), after loading weights and before building the optimizer",
)
def plan_not_kept(context: Context) -> Iterator[Hit]:
    """A parameter's flag is not what the plan says, or the plan does not fit the model."""
    if context.plan is None:
        return
    try:
        decisions = decide(context.plan, context.inventory)
    except FrostlineError as error:
        yield Hit("plan", f"does not fit the model: {error}", "correct the rule")
        return
    for index, action in sorted(decisions.items()):
        for name, parameter in context.inventory.groups[index].named.items():
            if action == "train" and not can_train(parameter):
                yield Hit(
                    name,
                    f"is to train by the plan, but {str(parameter.dtype).removeprefix('torch.')}"
                    " can't have gradients",
                    "leave it out of the rule, or convert it to a floating-point type",
                )
            elif parameter.requires_grad != (action == "train"):
                yield Hit(name, _difference(action))


@rule(
    "FL410",
    "rule-without-effect",
    severity="warning",
    fix="delete the rule, or move it below the rules that override it: the last match wins",
)
def rule_without_effect(context: Context) -> Iterator[Hit]:
    """Later rules of the plan override all that a rule matches."""
    matches = []
    for one in context.plan.rules if context.plan else ():
        try:
            matches.append(set(one.select.find(context.inventory)))
        except FrostlineError:
            return  # plan-not-kept says what is wrong
    for number, found in enumerate(matches):
        later = set().union(*matches[number + 1 :])
        if found <= later and context.plan is not None:
            yield Hit(
                f"plan, rule {number + 1}",
                f"'{context.plan.rules[number]}' decides nothing: later rules match all of it",
            )


@rule(
    "FL411",
    "pattern-cuts-number",
    severity="warning",
    fix=r"end the pattern at the component, as in re:layer1\. or layer1.**",
)
def pattern_cuts_number(context: Context) -> Iterator[Hit]:
    """A pattern of the plan ends in the middle of a number: layer1 also matches layer10."""
    names = [alias.name for group in context.inventory.groups for alias in group.aliases]
    for number, one in enumerate(context.plan.rules if context.plan else (), 1):
        for text, pattern in _patterns(one.select):
            cut = [n for n in names if (m := pattern.search(n)) and _cuts_number(n, m.end())]
            whole = [n for n in names if (m := pattern.search(n)) and not _cuts_number(n, m.end())]
            if cut and whole:
                yield Hit(
                    f"plan, rule {number}",
                    f"{text} matches {whole[0]} and also {cut[0]}, in the middle of its number",
                )


def _difference(action: Action) -> str:
    if action == "freeze":
        return "is to be frozen by the plan, and requires gradients: flags are in no checkpoint"
    return "is to train by the plan, and is frozen: flags are in no checkpoint"


def _patterns(select: Selector) -> Iterator[tuple[str, re.Pattern[str]]]:
    """The regular expressions in a selector, and its globs up to their first star."""
    matcher = select.matcher
    if isinstance(matcher, Regex):
        yield str(select), re.compile(matcher.pattern)
    elif isinstance(matcher, Glob):
        stem, star, _ = matcher.pattern.partition("*")
        if star and stem[-1:].isdigit() and not GLOB_CHARACTERS & set(stem):
            whole = glob_to_regex(matcher.pattern)
            yield matcher.pattern, re.compile(rf"^(?={whole}\Z){re.escape(stem)}")
    elif isinstance(matcher, AnyOf | AllOf):
        for part in matcher.parts:
            yield from _patterns(part)
    elif isinstance(matcher, Not):
        yield from _patterns(matcher.part)


def _cuts_number(name: str, end: int) -> bool:
    return 0 < end < len(name) and name[end - 1].isdigit() and name[end].isdigit()


RULES = (plan_not_kept, rule_without_effect, pattern_cuts_number)
