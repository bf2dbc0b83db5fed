"""Why a frozen tensor moved: a guess from what can still be seen afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class Suspect(NamedTuple):
    """A frozen tensor that moved, with where it hangs.

    Attributes:
        key: its attribute name in ``owner``.
        owner: the module that holds it.
        was: the tensor object that was frozen.
        now: the tensor object found there now; None if there is none.
    """

    key: str
    owner: nn.Module
    was: Tensor
    now: Tensor | None


def likely_cause(suspect: Suspect) -> str:
    """The first explanation that fits, most specific first, with the mend."""
    return next(text for fits, text in _CAUSES if fits(suspect))


def _is_gone(s: Suspect) -> bool:
    return s.now is None


def _was_replaced(s: Suspect) -> bool:
    # A buffer is rebound by ordinary code (self.mean = ...); a parameter is not.
    return isinstance(s.was, nn.Parameter) and s.now is not s.was


def _is_running_statistic(s: Suspect) -> bool:
    return isinstance(s.owner, _NormBase) and s.key in (
        "running_mean",
        "running_var",
        "num_batches_tracked",
    )


def _is_power_iteration(s: Suspect) -> bool:
    return s.key in ("_u", "_v") or s.key.endswith(("_u", "_v"))


def _is_observer(s: Suspect) -> bool:
    names = [base.__name__ for base in type(s.owner).__mro__]
    return any("Observer" in name or "FakeQuantize" in name for name in names)


def _is_renormalised(s: Suspect) -> bool:
    return getattr(s.owner, "max_norm", None) is not None


def _trains_again(s: Suspect) -> bool:
    return s.now is not None and s.now.requires_grad


def _has_gradient(s: Suspect) -> bool:
    return s.now is not None and s.now.is_leaf and s.now.grad is not None


def _is_parameter(s: Suspect) -> bool:
    return isinstance(s.was, nn.Parameter)


_CAUSES: tuple[tuple[Callable[[Suspect], bool], str], ...] = (
    (
        _is_gone,
        "it, or a module that holds it, was removed or replaced after the freeze: freeze again",
    ),
    (
        _was_replaced,
        (
            "the parameter was replaced by another object: load_state_dict(assign=True), or an"
            " assignment to the module; freeze after loading. Or it was written to, then sharded"
        ),
    ),
    (
        _is_running_statistic,
        (
            "its module ran in train mode and updated its running statistics: pin it to eval"
            " (fl.freeze does unless told otherwise), and do not remove the hook"
        ),
    ),
    (_is_power_iteration, "spectral_norm updates its vectors whenever the weight is read"),
    (_is_observer, "a quantisation observer rewrites it in forward: disable the observer"),
    (_is_renormalised, "max_norm rewrites the rows that forward looks up: set max_norm=None"),
    (
        _trains_again,
        (
            "requires_grad is True again: thawed by hand, for instance by requires_grad_() on a"
            " parent; thaw with fl.unfreeze"
        ),
    ),
    (
        _has_gradient,
        (
            "it has a gradient, so an optimizer that holds it applied it: build the optimizer with"
            " fl.optimizer, after freezing"
        ),
    ),
    (
        _is_parameter,
        (
            "written without a gradient: weight decay or momentum of an optimizer that still holds"
            " it, load_state_dict, .data, or an in-place operation"
        ),
    ),
    (lambda _: True, "its module's forward, or load_state_dict, wrote the buffer"),
)
