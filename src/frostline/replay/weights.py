"""Frozen tensors, watched while what was computed with them is replayed."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from frostline.proof import fingerprint
from frostline.proof.fingerprint import quick_key
from frostline.replay.sharded_blocks import over_ranks
from frostline.replay.versions import versions_of
from frostline.shards import local_part


class Weights:
    """Tensors that must not change while what was computed with them is replayed.

    Their versions are compared before every pass, their content when a version moved or when
    :meth:`check_content` is called: fused optimizers, ``.data`` and NumPy move no version, and
    inference tensors have none.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._given = tensors
        self._tensors = {name: local_part(tensor) for name, tensor in tensors.items()}
        self._versions = self._look()
        self._addresses: list[int] | None = None
        self._keys: dict[str, Hashable] = {}
        self.fingerprints = {name: fingerprint(part) for name, part in self._tensors.items()}

    def digests(self) -> dict[str, str]:
        """Name → what tells the content apart; of a sharded tensor, the content on all ranks."""
        return {
            name: over_ranks(tensor, self.fingerprints[name])
            for name, tensor in self._given.items()
        }

    def changed(self) -> str | None:
        """The name of a tensor whose content changed, as far as versions tell."""
        return None if self._look() == self._versions else self.check_content()

    def check_content(self) -> str | None:
        """The name of a tensor whose content changed."""
        versions = self._look()
        has_moved = versions != self._versions
        if self._addresses is not None and not has_moved and self._addresses == self._where():
            return None  # to read what was evicted would bring it back
        for name, tensor in self._tensors.items():
            key = quick_key(tensor)
            if key == self._keys.get(name):
                continue
            if fingerprint(tensor) != self.fingerprints[name]:
                return name
            self._keys[name] = key
        self._versions = versions
        return None

    def trust_addresses(self) -> None:
        """From now on take content for the same while it lies at the same place."""
        self._versions, self._addresses = self._look(), self._where()

    def _where(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors.values()))

    def _look(self) -> tuple[list[int], list[int]]:
        return versions_of(self._tensors.values()), self._where()
