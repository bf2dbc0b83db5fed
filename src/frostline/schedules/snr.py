"""Signal-to-noise of weight matrices, after Spectrum: how much of a matrix is more than noise."""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import ScheduleError
from frostline.naming import Alias, Inventory, TensorGroup, take_inventory
from frostline.proof.fingerprint import has_plain_content

Report = Callable[[int, int, str], None]
"""Called before each matrix with how many are done, how many there are, and its name."""

# Scalars that are converted to float32 at once; a longer matrix is reduced piece by piece.
_PIECE = 1 << 24
# The interquartile range of a normal distribution in standard deviations, as the authors round it.
_IQR_OF_NORMAL = 1.349


def snr_scores(model: nn.Module, *, progress: Report | None = None) -> dict[str, float]:
    """Spectrum's score of each weight matrix: first name → score, in definition order.

    The sum of the singular values that stand out from noise (Marchenko-Pastur), over the sum of
    those that do not, over the greatest. Reads weights only, no data; vectors have no score. Takes
    seconds for matrices of a few thousand rows and columns each, and memory for one at a time.

    Args:
        model: the model, wrapped or not, with its weights loaded.
        progress: told how far it is.

    Raises:
        ScheduleError: (a ValueError) a matrix has no content to read (meta, sharded, quantised), or
            has infinities or NaN.

    >>> from torch import nn
    >>> layer = nn.Linear(5, 5)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([10.0, 2.0, 1.5, 1.0, 0.5])))
    >>> {name: round(score, 4) for name, score in snr_scores(layer).items()}
    {'weight': 0.9}
    """
    return snr_scores_in(take_inventory(model), progress=progress)


def snr_scores_in(
    inventory: Inventory, *, only: Container[str] | None = None, progress: Report | None = None
) -> dict[str, float]:
    """:func:`snr_scores` on an inventory that was already taken, of the names in ``only``."""
    groups = [g for g in inventory.groups if (only is None or g.name in only) and _is_matrix(g)]
    scores: dict[str, float] = {}
    for done, group in enumerate(groups):
        if progress is not None:
            progress(done, len(groups), group.name)
        matrices = _matrices(group.aliases[0])
        scores[group.name] = sum(map(signal_to_noise, matrices)) / len(matrices)
    return scores


def signal_to_noise(matrix: Tensor) -> float:
    """The score of one matrix of shape (rows, columns).

    Infinite where nothing is noise, 0 for a matrix of zeros.

    >>> signal_to_noise(torch.eye(3))
    inf
    """
    values = _singular_values(matrix)
    if values[0] == 0:
        return 0.0
    quarter, three_quarters = torch.quantile(values, values.new_tensor([0.25, 0.75])).tolist()
    sigma = (three_quarters - quarter) / _IQR_OF_NORMAL
    rows, columns = matrix.shape
    threshold = sigma * (1 + (min(rows, columns) / max(rows, columns)) ** 0.5)
    signal = values[values > threshold].sum().item()
    noise = values[values <= threshold].sum().item()
    return signal / noise / values[0].item() if noise else float("inf")


def _is_matrix(group: TensorGroup) -> bool:
    tensor = group.aliases[0].tensor
    if is_lazy(tensor):
        return True  # it will be something: refused where it is read
    return tensor.ndim >= 2 and (tensor.is_floating_point() or tensor.is_complex())


def _matrices(alias: Alias) -> list[Tensor]:
    """One matrix; a convolution's is (out, all else), and a stack of experts is several."""
    tensor = alias.tensor
    if not has_plain_content(tensor):
        raise ScheduleError(
            f"{alias.name} has no content to score (lazy, meta, sharded or quantised): load"
            " the weights first, and score them before sharding"
        )
    tensor = tensor.detach()
    if not bool(torch.isfinite(tensor).all()):
        raise ScheduleError(f"{alias.name} holds infinities or NaN, so it has no score")
    if tensor.numel() == 0:
        raise ScheduleError(f"{alias.name} is empty, so it has no score")
    if tensor.ndim == 2:
        return [tensor]
    if isinstance(alias.owner, nn.modules.conv._ConvNd):
        return [tensor.flatten(1)]
    return list(tensor.flatten(0, -3))


@torch.no_grad()
def _singular_values(matrix: Tensor) -> Tensor:
    """In float32, greatest first. A long matrix has those of the R of its QR decomposition."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    dtype = torch.complex64 if tall.is_complex() else torch.float32
    rows, columns = tall.shape
    step = max(columns, _PIECE // columns)
    if rows > step:
        reduced = tall.new_empty((0, columns), dtype=dtype)
        for piece in torch.split(tall, step):
            stacked = torch.cat([reduced, piece.to(dtype)])
            reduced = torch.linalg.qr(stacked, mode="r").R
        tall = reduced
    values: Tensor = torch.linalg.svdvals(tall.to(dtype))
    return values
