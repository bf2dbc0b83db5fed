"""The form of a kept tensor: how it is cut into samples, and put together again bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frostline.errors import ReplayError
from frostline.replay.windows import Box


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The form of one tensor that a frozen call returns for a batch.

    Attributes:
        shape: its shape.
        strides: its strides; kernels, and so the last bits of what they compute, depend on them.
        dtype: its dtype.
        device: its device.
        samples: the batch size.
        batch_dim: the dimension that counts samples; None if the tensor is not cut.
        inner_first: where that dimension counts other things too (heads, windows), whether those
            are the slower ones: ``heads × samples`` instead of ``samples × heads``.
        kept_as: the dtype in which it is kept; None for its own.
        part: the box of its indices that alone is kept; None for all. The rest comes back as NaN.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    samples: int
    batch_dim: int | None
    inner_first: bool = False
    kept_as: torch.dtype | None = None
    part: Box | None = None

    @staticmethod
    def of(tensor: Tensor, *, samples: int, varies: bool) -> Layout:
        """Read the form off a tensor; the batch dimension is a guess, to be held against others.

        Args:
            tensor: what was returned.
            samples: the batch size.
            varies: whether it depends on the batch at all.
        """
        plain = Layout(
            shape=tuple(tensor.shape),
            strides=tensor.stride(),
            dtype=tensor.dtype,
            device=tensor.device,
            samples=samples,
            batch_dim=None,
        )
        return next(iter(plain.candidates()), plain) if varies else plain

    def candidates(self) -> list[Layout]:
        """Every way in which the tensor could be cut, the likeliest first.

        >>> layout = Layout.of(torch.ones(6, 3), samples=3, varies=True)
        >>> [way.batch_dim for way in layout.candidates()]
        [1, 0, 0]
        """
        sizes = self.shape
        found = [replace(self, batch_dim=d) for d, size in enumerate(sizes) if size == self.samples]
        for dim, size in enumerate(sizes):
            if size > self.samples and size % self.samples == 0:
                found.append(replace(self, batch_dim=dim, inner_first=False))
                found.append(replace(self, batch_dim=dim, inner_first=True))
        return found

    @property
    def record_bytes(self) -> int:
        """Bytes of one sample; of the whole tensor if it is not cut."""
        whole = math.prod(self.kept_shape) * (self.kept_as or self.dtype).itemsize
        return whole if self.batch_dim is None else whole // self.samples

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """The shape of what is kept."""
        part = self.part
        return self.shape if part is None else tuple(end - first for first, end in part)

    def kept_of(self, tensor: Tensor) -> Tensor:
        """What is kept of a tensor of this form."""
        return tensor if self.part is None else tensor[_slices(self.part)]

    def only(self, part: Box | None) -> Layout:
        """The same, of which this part alone is kept, where each sample has the same part.

        >>> layout = Layout.of(torch.ones(4, 37, 16), samples=4, varies=True)
        >>> layout.record_bytes, layout.only(((0, 4), (0, 1), (0, 16))).record_bytes
        (2368, 64)
        >>> layout.only(((0, 1), (0, 37), (0, 16))).record_bytes
        2368
        """
        dim = self.batch_dim
        has_all_samples = part and dim is not None and part[dim] == (0, self.shape[dim])
        return replace(self, part=part) if has_all_samples else self

    def narrowed(self, dtype: torch.dtype | None) -> Layout:
        """The same, kept in a narrower floating dtype; other dtypes are kept as they are.

        >>> Layout.of(torch.ones(4, 2), samples=4, varies=True).narrowed(torch.float16).record_bytes
        4
        """
        is_wider = dtype is not None and self.dtype.itemsize > dtype.itemsize
        return replace(self, kept_as=dtype) if self.dtype.is_floating_point and is_wider else self

    def as_kept(self, tensor: Tensor) -> Tensor:
        """What would be read of the tensor once it is recorded."""
        if self.kept_as is None and self.part is None:
            return tensor
        return self.from_records(self.to_records(tensor))

    def to_records(self, tensor: Tensor) -> Tensor:
        """The tensor's bytes, one row a sample: uint8 [samples, record_bytes]; one row if uncut.

        Raises:
            ReplayError: a value is too large for the dtype in which it is to be kept.
        """
        tensor = self.kept_of(tensor)
        cpu = tensor.detach().cpu().resolve_conj().resolve_neg()
        if self.kept_as is not None:
            cpu = _narrowed(cpu, self.kept_as)
        rows = 1 if self.batch_dim is None else self.samples
        flat = self._samples_first(cpu).reshape(-1) if rows > 1 else cpu.reshape(-1)
        if self.record_bytes == 0:
            return torch.empty(rows, 0, dtype=torch.uint8)
        return flat.contiguous().view(torch.uint8).view(rows, self.record_bytes)

    def from_records(self, records: Tensor, *, fill: float = math.nan) -> Tensor:
        """The tensor again, in memory of its own with the recorded strides.

        Args:
            records: uint8 [samples, record_bytes]; one row if uncut.
            fill: what comes in the place of what was not kept.
        """
        flat = records.contiguous().view(-1)
        if flat.numel() == 0:
            return torch.empty_strided(
                self.shape, self.strides, dtype=self.dtype, device=self.device
            )
        values = flat.view(self.kept_as or self.dtype).to(self.dtype)
        dim, shape = self.batch_dim, self.kept_shape
        if dim is None or self.samples == 1:
            shaped = values.view(shape)
        else:
            inner = shape[dim] // self.samples
            rest = (*shape[:dim], *shape[dim + 1 :])
            split = values.view(self.samples, inner, *rest)
            if self.inner_first:
                split = split.transpose(0, 1)
            shaped = split.reshape(shape[dim], *rest).movedim(0, dim)
        return self._laid(shaped) if self.part is None else self._filled(shaped, fill)

    def placeholder(self, *, is_written: bool) -> Tensor:
        """A tensor of this form that poisons what is computed from it.

        Args:
            is_written: whether code will write into it; if not it takes no memory.
        """
        floats = self.dtype.is_floating_point or self.dtype.is_complex
        poison = torch.full((), math.nan if floats else 0, dtype=self.dtype, device=self.device)
        return self._laid(poison.expand(self.shape)) if is_written else poison.expand(self.shape)

    def _samples_first(self, tensor: Tensor) -> Tensor:
        assert self.batch_dim is not None
        moved = tensor.movedim(self.batch_dim, 0)
        inner = moved.shape[0] // self.samples
        if inner == 1:
            return moved
        if self.inner_first:
            return moved.reshape(inner, self.samples, *moved.shape[1:]).transpose(0, 1)
        return moved

    def _filled(self, tensor: Tensor, fill: float) -> Tensor:
        whole = torch.empty_strided(
            self.shape, self.strides, dtype=self.dtype, device=self.device
        ).fill_(fill)
        assert self.part is not None
        whole[_slices(self.part)] = tensor.to(self.device)
        return whole

    def _laid(self, tensor: Tensor) -> Tensor:
        if tensor.stride() == self.strides and tensor.device == self.device:
            return tensor
        # An expanded dimension has one entry in memory.
        kept = [slice(0, 1) if stride == 0 else slice(None) for stride in self.strides]
        sizes = [
            min(size, 1) if stride == 0 else size
            for size, stride in zip(self.shape, self.strides, strict=True)
        ]
        laid = torch.empty_strided(sizes, self.strides, dtype=self.dtype, device=self.device)
        laid.copy_(tensor[tuple(kept)])
        return laid.expand(self.shape) if 0 in self.strides else laid


def _slices(part: Box) -> tuple[slice, ...]:
    return tuple(slice(first, end) for first, end in part)


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = tensor.to(dtype)
    if narrow.isinf().sum() != tensor.isinf().sum():
        largest = float(tensor.abs().nan_to_num(posinf=0.0).max())
        raise ReplayError(
            f"a value of {largest:.3g} is to be kept as {dtype}, which ends at"
            f" {torch.finfo(dtype).max:.3g}: keep it as torch.bfloat16, or leave keep_as out"
        )
    return narrow
