"""One frozen tensor under guard: what it held, when it was last seen so, and how to put it back."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from frostline.freezing.flags import claims_on
from frostline.naming import Alias, tensor_bytes
from frostline.proof.changes import Change
from frostline.proof.evidence import Witnessed, change_in
from frostline.proof.fingerprint import has_plain_content, quick_key
from frostline.proof.reference import take_references
from frostline.shards import local_part, present


class Watched:
    """A frozen parameter, or a buffer of a frozen module.

    Attributes:
        owner: the module that holds the tensor.
        tensor: the tensor that was frozen.
        nbytes: its bytes.
        seen: the moment of the timeline at which its content was last compared.
        unwritten: the latest moment at which torch had counted no write to it.
        seen_step: the step during which that was.
        armed_until: the last step in which it is compared at every moment, to place a writer.
    """

    def __init__(self, witness: Witnessed, *, value: Tensor | None, moment: int, step: int) -> None:
        self.witness = witness
        self.owner = witness.alias.owner
        self.tensor = witness.alias.tensor
        self.nbytes = tensor_bytes(self.tensor)
        self.seen = self.unwritten = moment
        self.seen_step = step
        self.armed_until = -1
        # Worked out once: this is read for every tensor at every moment.
        self._listing = f"_{witness.kind}s"
        self._attribute = witness.key
        self._value = value
        self._key = quick_key(self.tensor)
        self._claims = _claims(self.tensor)
        self._version = _version(self.tensor)

    @property
    def name(self) -> str:
        """Canonical name."""
        return self.witness.alias.name

    def now(self) -> Tensor | None:
        """The tensor that is found there at this moment."""
        held: dict[str, Tensor | None] = self.owner.__dict__[self._listing]
        found = held.get(self._attribute)
        return found if found is self.tensor else present(self.tensor, found)

    def looks_written(self) -> bool:
        """Whether torch itself counted a write; many writes go uncounted."""
        return self.now() is not self.tensor or _version(self.tensor) != self._version

    def well_until(self) -> int:
        """The latest moment at which it was as it should be, by what is known."""
        return max(self.seen, self.unwritten) if self.looks_written() else self.seen

    def change(self) -> Change | None:
        """Compare the content with what it was; None if it is bitwise the same."""
        now = self.now()
        if now is not None:
            key = quick_key(now)
            if key == self._key and now is self.tensor:
                self._version = _version(now)
                return None
        change = change_in(self.witness)
        if change is None:
            # The same content in other strides, on another device, or in another object.
            assert now is not None
            self._key = key
        return change

    def was_let_go(self) -> bool:
        """Whether a thaw or an undo stood between then and now, so that it was free to move.

        A further freeze on top of the one that held it lets nothing go.
        """
        claims = _claims(self.tensor)
        return not self._claims <= claims or any(trains for _, trains in claims - self._claims)

    def restore(self) -> None:
        """Put the frozen value back, bitwise, and the frozen object if another took its place."""
        reference = self.witness.reference
        owner = self.owner
        held = owner._parameters if self.witness.kind == "parameter" else owner._buffers
        held[self.witness.key] = self.tensor  # type: ignore[assignment]
        value = self._value
        if value is None:
            assert reference.values is not None
            assert reference.shape is not None
            value = reference.values.reshape(reference.shape)
        # Through .data: the graph of a backward that is still to come may hold this tensor, and a
        # write that autograd sees would make it refuse.
        target = local_part(self.tensor.data)
        if target.shape == value.shape and target.dtype == value.dtype:
            target.copy_(value)
        else:
            self.tensor.data = value.to(target.device, copy=True)
        self._key = quick_key(self.tensor)
        self._version = _version(self.tensor)


def watch(aliases: Iterable[Alias], *, keep: bool, moment: int, step: int) -> list[Watched]:
    """Record tensors as they are now; with ``keep`` whole, so that they can be put back."""
    listed = list(aliases)
    tensors = [alias.tensor for alias in listed]
    with torch.no_grad():
        if keep:
            references = take_references(tensors, budget_bytes=math.inf)
            parts = [local_part(tensor) for tensor in tensors]
            values = [None if has_plain_content(p) else p.detach().clone() for p in parts]
        else:
            references = take_references(tensors)
            values = [None] * len(tensors)
        return [
            Watched(Witnessed(alias=alias, reference=kept), value=value, moment=moment, step=step)
            for alias, kept, value in zip(listed, references, values, strict=True)
        ]


def _claims(tensor: Tensor) -> frozenset[tuple[int, bool]]:
    """The calls that froze or thawed it, and that were not undone."""
    if not isinstance(tensor, nn.Parameter):
        return frozenset()
    claims = claims_on(tensor)
    return frozenset((c.owner, c.trainable) for c in claims if c.trainable is not None)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
