"""Freezing with recomputed activations, several backwards a step, and torch.func."""

from __future__ import annotations

import pytest
import torch
from combining import FROZEN, batch, bits, loss_of, network, sgd, train
from torch import Tensor, nn
from torch.func import functional_call, grad

import frostline as fl


def outcome(model: nn.Module, losses: list[float]) -> tuple[list[float], dict[str, str]]:
    """Losses and content; but for live statistics, which torch updates in each recomputation."""
    kept = {name: digest for name, digest in bits(model).items() if "2.norm.running" not in name}
    return losses, {name: d for name, d in kept.items() if "2.norm.num" not in name}


def frozen_run(reentrant: bool | None) -> tuple[list[float], dict[str, str]]:
    model = network(reentrant=reentrant)
    frozen = fl.freeze(model, FROZEN)
    losses = train(model)
    frozen.verify()
    return outcome(model, losses)


def train_with(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def test_checkpointing_without_reentry_changes_nothing() -> None:
    assert frozen_run(False) == frozen_run(None)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_reentrant_checkpointing_after_a_frozen_layer_is_named() -> None:
    """The live block gets no gradient, and torch only warns: check and guard name it."""
    model = network(reentrant=True)
    fl.freeze(model, FROZEN)
    optimizer = sgd(model)
    found = fl.check(model, optimizer, example=batch(0)[0])
    assert "blocks.2.up.weight" in " ".join(str(finding) for finding in found)
    with pytest.raises(fl.GuardError, match=r"blocks\.2"):  # noqa: SIM117
        with fl.guard(model, optimizer):
            train_with(model, optimizer)


def test_reentrant_checkpointing_works_where_the_input_asks_for_gradients() -> None:
    """The mend of Hugging Face's ``enable_input_require_grads``; it costs the frozen backward."""
    model = network(reentrant=True)
    frozen = fl.freeze(model, FROZEN)
    model.stem.register_forward_hook(lambda module, args, output: output.requires_grad_())
    losses = train(model)
    frozen.verify()
    assert outcome(model, losses) == frozen_run(None)


def test_accumulated_gradients_thaw_only_between_steps() -> None:
    model = network()
    frozen = fl.freeze(model, FROZEN)
    optimizer = sgd(model)
    with fl.guard(model, optimizer):
        for step in range(3):
            optimizer.zero_grad()
            for part in range(2):
                (loss_of(model, 2 * step + part) / 2).backward()
                if part == 0:
                    with pytest.raises(fl.TransitionError, match="has a gradient"):
                        fl.unfreeze(model, "blocks.1")
            optimizer.step()
    frozen.verify()


def test_a_freezer_counts_optimizer_steps_and_not_micro_batches() -> None:
    model = network()
    optimizer = sgd(model)
    freezer = fl.Freezer(model, optimizer, schedule="gradual-unfreeze", steps_per_epoch=2)
    for part in range(8):
        (loss_of(freezer.model, part) / 2).backward()
        if part % 2:
            optimizer.step()
            optimizer.zero_grad()
        freezer.step()
    assert freezer.position.step == 4
    freezer.close()


def test_functional_calls_see_pinned_modules_and_keep_statistics() -> None:
    model = network()
    frozen = fl.freeze(model, FROZEN)
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inputs, targets = batch(0)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(0)
        # Live statistics have to be handed in: torch.func refuses to write those of the model.
        given = {name: buffer.clone() for name, buffer in model.named_buffers() if "2." in name}
        logits = functional_call(model, (parameters, given), inputs)
        return nn.functional.cross_entropy(logits, targets)

    model.train()
    gradients = grad(loss)({name: p.detach() for name, p in live.items()})
    assert gradients.keys() == live.keys()
    torch.manual_seed(0)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    for name, parameter in live.items():
        torch.testing.assert_close(gradients[name], parameter.grad)
    frozen.verify()


def test_functional_calls_that_hand_in_frozen_weights_do_not_store_them() -> None:
    model = network()
    frozen = fl.freeze(model, FROZEN)
    other = {name: p.detach() + 1 for name, p in model.named_parameters()}
    functional_call(model, other, batch(0)[0])
    frozen.verify()
