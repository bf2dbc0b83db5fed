"""How a row of the tables of transformers becomes settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.data import PADDING, VOCABULARY
from replay_zoo.settings import Setting, own_loss

WIDE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
"""Sizes by the names that most configurations have."""

TEXT: dict[str, Any] = {
    **WIDE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "pad_token_id": PADDING,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def logits_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy, for models that compute no loss of their own."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return functional.cross_entropy(model(**inputs).logits, batch["labels"])


def architecture(
    name: str,
    model: str,
    config: dict[str, Any],
    batch: Callable[[int], Any],
    *,
    head: str | tuple[str, ...],
    stack: str | tuple[str, str] | None = None,
    loss: Callable[[nn.Module, Any], Tensor] = own_loss,
    **fields: Any,
) -> list[Setting]:
    """The head alone; the head and the last block; the head and the upper half.

    Args:
        name: of the architecture.
        model: class name in transformers.
        config: arguments of its configuration.
        batch: its data.
        head: what is trained in every cut.
        stack: the module that holds the blocks, from which the last one and the last two are
            taken; or two selectors, of the last block and of the upper half.
        loss: the forward pass of a step.
        fields: further fields of each setting.
    """

    def make() -> nn.Module:
        kind = getattr(transformers, model)
        return kind(kind.config_class(**config))

    heads = (head,) if isinstance(head, str) else head
    trained = {"head": heads}
    if stack is not None:
        last, upper = (f"last:1:{stack}", f"last:2:{stack}") if isinstance(stack, str) else stack
        trained |= {"last": (*heads, last), "upper": (*heads, upper)}
    return [
        Setting(name=f"{name}/{cut}", make=make, batch=batch, trains=trains, loss=loss, **fields)
        for cut, trains in trained.items()
    ]
