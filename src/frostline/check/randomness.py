"""Which modules draw random numbers in train mode."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

# Drop path and its kin have no class in torch: every library brings its own.
_BY_NAME = ("dropout", "droppath", "drop_path", "stochasticdepth", "dropblock", "gaussiannoise")
_RATES = ("p", "drop_prob", "drop_rate", "dropout", "dropout_p", "prob", "sigma", "std")


def is_random(module: nn.Module) -> bool:
    """Whether the module's output is random in train mode, as far as its class tells.

    >>> is_random(nn.Dropout(0.1)), is_random(nn.Dropout(0.0)), is_random(nn.Linear(1, 1))
    (True, False, False)
    """
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    if isinstance(module, nn.RReLU):
        return module.lower != module.upper
    name = type(module).__name__.lower()
    if not any(known in name for known in _BY_NAME):
        return False
    rates = [rate for key in _RATES if isinstance(rate := getattr(module, key, None), float | int)]
    return any(rate > 0 for rate in rates) if rates else True
