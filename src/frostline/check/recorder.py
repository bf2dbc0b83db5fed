"""What is seen while a model runs forward: inputs and outputs of frozen modules, bytes kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline.check.randomness import is_random
from frostline.nests import tensors_in
from frostline.proof import fingerprint


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module.

    Attributes:
        name: the module's canonical name.
        frozen: whether the module is frozen.
        random: whether it drew random numbers by its own design (a dropout that is on).
        given: fingerprints of the tensors that went in, for a frozen module.
        gave: fingerprints of those that came out, for a frozen module.
        fresh: whether nothing that went in depends on a trainable parameter.
        grafted: whether what came out requires grad although nothing that went in does.
        zeroed: whether padded positions came out as zeros.
    """

    name: str
    frozen: bool
    random: bool
    given: tuple[str, ...]
    gave: tuple[str, ...]
    fresh: bool
    grafted: bool
    zeroed: bool


@dataclass
class Recording:
    """The calls of one forward pass in the order in which they began, and the bytes it keeps."""

    order: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    inference: str | None = None
    """The first module whose forward computes under inference mode."""

    def kept_bytes(self, model: nn.Module) -> int:
        """Bytes of the storages kept for backward, the model's own tensors left out."""
        own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        sizes = {key: t.untyped_storage().nbytes() for key, t in self.kept.items()}
        return sum(size for key, size in sizes.items() if key not in own)


@contextmanager
def recording(
    parts: Iterable[tuple[str, nn.Module, bool]], seen: Recording | None = None
) -> Iterator[Recording]:
    """Record the calls of these (name, module, frozen) and what autograd keeps.

    A caller who wants what was seen before an exception gives the recording to fill.
    """
    seen = Recording() if seen is None else seen
    handles = []
    for name, module, frozen in parts:
        watch = _Watch(name, module, frozen, seen)
        handles.append(module.register_forward_pre_hook(watch.before, with_kwargs=True))
        handles.append(module.register_forward_hook(watch.after, with_kwargs=True))
    try:
        with torch.autograd.graph.saved_tensors_hooks(_keeper(seen), lambda tensor: tensor):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """The hooks on one module."""

    def __init__(self, name: str, module: nn.Module, frozen: bool, seen: Recording) -> None:
        self.name, self.frozen, self.seen = name, frozen, seen
        self.given: list[tuple[str, ...]] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.seen.order.append(self.name)
        if self.seen.running and (torch.is_inference_mode_enabled() or _inferred((args, kwargs))):
            self.blame(self.seen.running[-1])  # inside it the mode was switched on
        self.seen.running.append(self.name)
        self.given.append(_prints((args, kwargs)) if self.frozen else ())

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        del self.seen.running[-1:]
        if _inferred(output):
            self.blame(self.name)
        went_in, came_out = list(tensors_in((args, kwargs))), list(tensors_in(output))
        fresh = not any(t.requires_grad for t in went_in)
        self.seen.calls.append(
            Call(
                name=self.name,
                frozen=self.frozen,
                random=is_random(module) and module.training,
                given=self.given.pop() if self.given else (),
                gave=_prints(output) if self.frozen else (),
                fresh=fresh,
                grafted=fresh and any(t.requires_grad for t in came_out),
                zeroed=_zeroes_padding(module, args, kwargs, output),
            )
        )

    def blame(self, name: str) -> None:
        if self.seen.inference is None:
            self.seen.inference = name


def _inferred(nest: Any) -> bool:
    return any(tensor.is_inference() for tensor in tensors_in(nest))


def _zeroes_padding(module: nn.Module, args: Any, kwargs: Any, output: Any) -> bool:
    """Whether a TransformerEncoder returned zeros at the padded positions."""
    if not isinstance(module, nn.TransformerEncoder) or not isinstance(output, Tensor):
        return False
    mask = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
    if mask is None or output.shape[: mask.ndim] != mask.shape:
        return False
    padded = mask if mask.dtype == torch.bool else mask == float("-inf")
    return bool(padded.any()) and not bool(output[padded].any())


def _prints(nest: Any) -> tuple[str, ...]:
    return tuple(fingerprint(tensor) for tensor in tensors_in(nest))


def _keeper(seen: Recording) -> Any:
    def keep(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key is not None:
            # Detached: a saved output would hold its own graph, and the graph this dictionary.
            seen.kept[key] = tensor.detach()
        return tensor

    return keep


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other opaque layouts
        return None
