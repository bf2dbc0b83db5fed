"""The networks that Frostline brings along, small enough for any machine.

``tutorial`` is the net of the freezing tutorials that ``frostline compare`` puts to the test;
``digits-cnn`` is what ``frostline finetune`` trains when no model is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

DIGIT_CLASSES = 5
"""Classes of either half of the digits task: 0-4 for pretraining, 5-9 for fine-tuning."""

PRETRAINED = "digits-cnn"
"""The built-in that ``frostline finetune`` takes pretrained, and gives a new head."""


class TutorialNet(nn.Module):
    """``fc1`` (8 to 4), ReLU, ``fc2`` (4 to 10): 86 parameters.

    Maps floats of shape (batch, 8) to logits of shape (batch, 10).

    >>> import torch
    >>> TutorialNet()(torch.zeros(3, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 4)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, 10) for ``x`` of shape (batch, 8)."""
        logits: Tensor = self.fc2(self.relu(self.fc1(x)))
        return logits


class DigitsCNN(nn.Module):
    """A convolutional network for 8 x 8 grey scans: ``stem``, ``block1`` to ``block3``, ``head``.

    Every stage but the head has BatchNorm and every block has Dropout, so freezing it by
    ``requires_grad=False`` alone lets running statistics drift and leaves noise in the frozen
    part.

    Args:
        num_classes: logits that the head gives.

    >>> import torch
    >>> DigitsCNN(5)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 5])
    """

    def __init__(self, num_classes: int = DIGIT_CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.block1 = _block(32, 64, dropout=0.05)
        self.block2 = _block(64, 64, dropout=0.1, stride=2)
        self.block3 = _block(64, 128, dropout=0.1, stride=2)
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, num_classes) for scans of shape (batch, 1, 8, 8)."""
        features = self.block3(self.block2(self.block1(self.stem(x))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _block(
    channels_in: int, channels_out: int, *, dropout: float, stride: int = 1
) -> nn.Sequential:
    """3 x 3 convolution, BatchNorm, ReLU, Dropout; ``stride`` divides height and width."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.Dropout2d(dropout),
    )


BUILTIN: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"tutorial": TutorialNet, "digits-cnn": DigitsCNN}
)
"""Built-in networks by the names that ``--model`` takes; calling one gives fresh weights."""
