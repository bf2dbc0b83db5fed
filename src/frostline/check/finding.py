"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from frostline.check.context import Context

Severity = Literal["error", "warning"]
"""``error``: values, gradients or a step will be wrong. ``warning``: costly, or wrong later."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault, where it is, and how to mend it. ``str(finding)`` is one line.

    Attributes:
        code: stable code, such as ``FL101``; ``docs/checks/`` has a page for each.
        name: the same in words, such as ``stale-gradient``.
        where: canonical name of the tensor or module; or the part of the optimizer or scheduler,
            such as ``optimizer.param_groups[1]``.
        message: what is wrong and what comes of it, in one line.
        fix: the mend, in one line.
        severity: ``error`` or ``warning``.

    >>> finding = Finding(
    ...     code="FL101", name="stale-gradient", where="fc1.weight", severity="error",
    ...     message="is frozen but has a gradient", fix="set its .grad to None",
    ... )
    >>> print(finding)
    FL101 fc1.weight: is frozen but has a gradient — set its .grad to None
    """

    code: str
    name: str
    where: str
    message: str
    fix: str
    severity: Severity

    def __str__(self) -> str:
        return f"{self.code} {self.where}: {self.message} — {self.fix}"


class Hit(NamedTuple):
    """What a rule yields: the part of a finding that differs from hit to hit.

    Attributes:
        where: the tensor, module, group or scheduler.
        message: what is wrong with it.
        fix: the mend, where it differs from the rule's own.
    """

    where: str
    message: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of the linter.

    Attributes:
        code: stable code, never given to another rule.
        name: the same in words.
        severity: of all that it finds.
        fix: the mend, unless a hit brings its own.
        search: the pure function that looks for the fault.
    """

    code: str
    name: str
    severity: Severity
    fix: str
    search: Callable[[Context], Iterable[Hit]]

    @property
    def summary(self) -> str:
        """What the rule looks for: the first line of its function's docstring."""
        return (self.search.__doc__ or "").strip().partition("\n")[0]

    def findings(self, context: Context) -> list[Finding]:
        """Everything that the rule finds, in the model's order."""
        return [
            Finding(
                code=self.code,
                name=self.name,
                where=hit.where,
                message=hit.message,
                fix=hit.fix or self.fix,
                severity=self.severity,
            )
            for hit in self.search(context)
        ]


def rule(
    code: str, name: str, *, fix: str, severity: Severity = "error"
) -> Callable[[Callable[[Context], Iterable[Hit]]], Rule]:
    """Make a rule of the function below it."""

    def make(search: Callable[[Context], Iterable[Hit]]) -> Rule:
        return Rule(code=code, name=name, severity=severity, fix=fix, search=search)

    return make
