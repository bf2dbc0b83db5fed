"""The rows of the pitfall table that ``fl.check`` names, each with its fault shown to be there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import frostline as fl


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def backward(model: nn.Module) -> None:
    model(torch.randn(6, 8)).square().sum().backward()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.step(lambda: 0.0)
    optimizer.zero_grad()


def moved(tensor: Tensor, act: Callable[[], object]) -> bool:
    """Whether ``act`` changes the tensor."""
    before = tensor.detach().clone()
    act()
    return not torch.equal(before, tensor.detach())


def codes(*args: Any, **kwargs: Any) -> set[str]:
    return {finding.code for finding in fl.check(*args, **kwargs)}


# --- frozen values that still move ------------------------------------------------------------


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_frozen_mid_training_then_zero_grad_to_zeros(cls: type[torch.optim.Optimizer]) -> None:
    model = net()
    optimizer = cls(model.parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[call-arg]
    step(model, optimizer)
    optimizer.zero_grad(set_to_none=False)
    backward(model)
    model[0].requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    assert "FL101" in codes(model, optimizer)
    assert moved(model[0].weight, lambda: step_of_zeros(model, optimizer))


def step_of_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.step()


def test_frozen_while_gradients_pend() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    model[0].requires_grad_(False)
    assert codes(model, optimizer) == {"FL101"}
    assert moved(model[0].weight, optimizer.step)


def test_stale_gradient_inflates_clipping() -> None:
    model = net()
    backward(model)
    model[0].requires_grad_(False)
    with_it = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    without = torch.nn.utils.clip_grad_norm_(model[2].parameters(), 1e9)
    assert with_it > without
    assert codes(model, torch.optim.SGD(model[2].parameters(), lr=0.1)) == {"FL101"}


def test_way_two_backbone_left_out_of_the_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    step(model, optimizer)
    assert model[0].weight.grad is not None
    assert [f.where for f in fl.check(model, optimizer)] == ["0.weight", "0.bias"]
    assert codes(model, optimizer) == {"FL201"}


class DecayingMuon(torch.optim.Optimizer):
    """Fills a missing gradient with zeros, then decays; takes its options from its groups."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            assert set(group) <= {"params", "lr", "weight_decay", "initial_lr"}
        super().__init__(groups, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.data.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.data.add_(parameter.grad, alpha=-group["lr"])


def test_optimizers_that_write_although_grad_is_none() -> None:
    model = net()
    model[0].requires_grad_(False)
    muon = DecayingMuon([{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.1}])
    assert codes(model, muon) == {"FL203"}
    assert moved(model[0].weight, lambda: step(model, muon))
    model = net()
    lbfgs = torch.optim.LBFGS(model.parameters())
    step(model, lbfgs)
    model[0].requires_grad_(False)
    assert "FL203" in codes(model, lbfgs)


class Swapping(torch.optim.SGD):
    """Schedule-free in miniature: ``eval`` moves the weights towards an average in its state."""

    def eval(self) -> None:
        for parameter, state in self.state.items():
            parameter.data.lerp_(state["momentum_buffer"], 0.5)


def test_optimizers_that_swap_weights() -> None:
    model = net()
    optimizer = Swapping(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    model[0].requires_grad_(False)
    assert codes(model, optimizer) == {"FL202"}
    assert moved(model[0].weight, optimizer.eval)


def test_zero_learning_rate_as_a_freeze() -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = torch.optim.Rprop(groups, lr=0.1)
    assert codes(model, optimizer) == {"FL205"}
    step(model, optimizer)
    assert moved(model[0].weight, lambda: step(model, optimizer))
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4, eta_min=0.01)
    step(model, optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] > 0
    assert codes(model, optimizer, scheduler) == {"FL205"}


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        pytest.param(lambda: nn.BatchNorm1d(4), (3, 4), id="BatchNorm1d"),
        pytest.param(lambda: nn.BatchNorm2d(4), (3, 4, 2, 2), id="BatchNorm2d"),
        pytest.param(lambda: nn.BatchNorm3d(4), (3, 4, 2, 2, 2), id="BatchNorm3d"),
        pytest.param(lambda: nn.BatchNorm1d(4, affine=False), (3, 4), id="no affine"),
        pytest.param(
            lambda: nn.InstanceNorm2d(4, track_running_stats=True), (3, 4, 2, 2), id="InstanceNorm"
        ),
    ],
)
def test_batchnorm_buffers(norm: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    body = nn.Sequential(nn.Identity(), norm())
    body.anchor = nn.Linear(1, 1)
    model = nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})
    body.requires_grad_(False)
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL102", "body.1")]
    with torch.no_grad():
        assert moved(body[1].running_mean, lambda: body[1](torch.randn(shape)))


def test_sync_batchnorm_buffers() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(normed())
    model[:2].requires_grad_(False)
    assert codes(model) == {"FL102"}


def test_eval_alone_leaves_the_affine_trainable() -> None:
    model = normed()
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert [(f.code, f.where) for f in fl.check(model, optimizer)] == [("FL109", "1")]
    assert moved(model[1].bias, lambda: step(model, optimizer))


@pytest.mark.parametrize("style", ["parametrization", "hook"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
def test_spectral_norm_vectors(style: str) -> None:
    wrap = spectral_norm if style == "parametrization" else torch.nn.utils.spectral_norm
    model = nn.Sequential(wrap(nn.Linear(8, 4)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert codes(model) == {"FL105"}
    vector = next(model[0].buffers())
    assert moved(vector, lambda: model(torch.randn(3, 8)))


def test_moving_average_codebooks() -> None:
    class Codebook(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 4)
            self.register_buffer("average", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            self.average = self.average * 0.9 + x.detach().mean(0) * 0.1
            return x

    model = nn.Sequential(Codebook(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    findings = fl.check(model, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL110", "0.average")]


def test_embedding_with_max_norm() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model.eval()
    assert codes(model) == {"FL107"}
    with torch.no_grad():
        assert moved(model[0].weight, lambda: model(torch.arange(5)))


def test_fake_quantize_observers() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 4), FakeQuantize()), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[0].eval()
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL106", "0.1")]
    assert moved(model[0][1].scale, lambda: model(torch.randn(3, 8)))


def test_model_train_puts_frozen_modules_back_in_train_mode() -> None:
    model = normed()
    model[:2].requires_grad_(False).eval()
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL103", "1")]
    assert codes(model.train()) == {"FL102"}
    model = normed()
    frozen = fl.freeze(model, all_but="2")
    assert codes(copy.deepcopy(model.train())) == set()
    frozen.verify()


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(lambda: nn.Dropout(0.5), id="dropout"),
        pytest.param(lambda: nn.AlphaDropout(0.5), id="alpha dropout"),
        pytest.param(lambda: nn.RReLU(), id="RReLU"),
        pytest.param(lambda: DropPath(0.5), id="drop path"),
    ],
)
def test_dropout_in_the_frozen_part(noise: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 64), noise()), nn.Linear(64, 2))
    model[0].requires_grad_(False)
    x = torch.randn(64, 8)
    assert not torch.equal(model[0](x), model[0](x))
    findings = fl.check(model, example=x)
    assert [(f.code, f.where) for f in findings] == [("FL104", "0.1")]


class DropPath(nn.Module):
    """As in timm: drops whole samples."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(len(x), 1) > self.drop_prob if self.training else torch.ones(len(x), 1)
        return x * keep


def test_functional_dropout_follows_the_outer_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 64), nn.Linear(64, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(F.dropout(self.one(x), 0.5, self.training)))

    model = Outer()
    frozen = fl.freeze(model, all_but="head")
    findings = fl.check(model, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL111", "two")]
    frozen.undo()


@pytest.mark.parametrize("rows", [slice(0, 2), slice(None)], ids=["some rows", "all rows"])
def test_rows_frozen_by_a_gradient_mask(rows: slice) -> None:
    model = net()
    weight = model[0].weight
    mask = torch.ones_like(weight)
    mask[rows] = 0
    weight.register_hook(lambda gradient: gradient * mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    findings = fl.check(model, optimizer, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL503", "0.weight")]
    assert moved(weight[:2], lambda: step(model, optimizer))


def test_rows_frozen_by_frostline_are_no_finding() -> None:
    model = net()
    fl.freeze_rows(model, "0.weight", slice(0, 2))
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    assert codes(model, optimizer, example=torch.randn(3, 8)) == set()


def test_two_parameters_on_one_storage() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert [(f.code, f.where) for f in fl.check(model, optimizer)] == [("FL402", "0.weight")]
    model(torch.randn(3, 4)).sum().backward()
    assert moved(model[0].weight, optimizer.step)


def test_a_parents_requires_grad_thaws_the_child() -> None:
    model = net()
    frozen = fl.freeze(model, "0")
    model.requires_grad_()
    assert [(f.code, f.where) for f in fl.check(model)] == [
        ("FL108", "0.weight"),
        ("FL108", "0.bias"),
    ]
    assert {f.where for f in fl.check(copy.deepcopy(model))} == {"0.weight", "0.bias"}
    frozen.undo()
    assert fl.check(model) == []


@pytest.mark.parametrize("name", ["requires_grad", "require_grad", "requires_gradient"])
def test_typos_that_freeze_nothing(name: str) -> None:
    model = net()
    setattr(model[0], name, False)
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL403", "0")]
    model = net()
    if name != "requires_grad":
        setattr(model[0].weight, name, False)
        assert [(f.code, f.where) for f in fl.check(model)] == [("FL403", "0.weight")]


@pytest.mark.parametrize("named", [True, False], ids=["groups with names", "without"])
def test_load_state_dict_with_assign(named: bool) -> None:
    model = net()
    optimizer = (
        fl.optimizer(torch.optim.SGD, model, lr=0.1)
        if named
        else torch.optim.SGD(model.parameters(), lr=0.1)
    )
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    findings = fl.check(model, optimizer)
    assert {f.code for f in findings} == {"FL207"}
    assert [f.where for f in findings] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not moved(model[0].weight, lambda: step(model, optimizer))


# --- training that is wrong -------------------------------------------------------------------


def test_name_patterns_that_over_match() -> None:
    model = nn.ModuleDict({f"layer{n}": nn.Linear(2, 2) for n in range(1, 13)})
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "layer1" not in name
    (finding,) = fl.check(model)
    assert (finding.code, finding.where) == ("FL404", "layer1")
    assert "layer10, layer11, layer12" in finding.message


@pytest.fixture
def group() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_ddp_thaw_after_wrapping() -> None:
    model = net()
    model[0].requires_grad_(False)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert codes(wrapped) == set()
    model[0].weight.requires_grad_(True)
    assert [(f.code, f.where) for f in fl.check(wrapped)] == [("FL601", "0.weight")]


@pytest.mark.usefixtures("group")
def test_ddp_freeze_after_wrapping() -> None:
    model = net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    model[0].weight.requires_grad_(False)
    findings = fl.check(wrapped, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL602", "0.weight")]
    backward(wrapped)
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        backward(wrapped)
    patient = nn.parallel.DistributedDataParallel(net(), find_unused_parameters=True)
    patient.module[0].requires_grad_(False)
    assert codes(patient) == set()


def test_compile_beyond_the_recompile_limit() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model = torch.compile(Net(), backend="eager")
    with torch._dynamo.config.patch(recompile_limit=2):
        model(torch.randn(2, 4))
        assert codes(model) == set()
        model.layers[0].requires_grad_(False)
        model(torch.randn(2, 4))
        assert codes(model) == {"FL603"}
    torch._dynamo.reset()


def test_optimizer_resume_is_by_position() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    frozen = fl.freeze(model, "1")
    saved = fl.optimizer(torch.optim.AdamW, model, lr=0.1).state_dict()
    frozen.undo()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    optimizer.load_state_dict(saved)
    assert [f.where for f in fl.check(model, optimizer)] == ["1.weight", "1.bias"]
    assert codes(model, optimizer) == {"FL209"}


def test_optimizer_resume_gives_state_of_another_shape() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False))
    optimizer = torch.optim.Adam([model[0].weight], lr=0.1)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    other = torch.optim.Adam([model[1].weight], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    model.zero_grad()
    model[0].requires_grad_(False)
    assert [(f.code, f.where) for f in fl.check(model, other)] == [("FL209", "1.weight")]


def test_a_parameter_removed_and_its_state_kept() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    model[0].requires_grad_(False)
    optimizer.param_groups[0]["params"] = list(model[2].parameters())
    findings = fl.check(model, optimizer)
    assert [(f.code, f.where) for f in findings] == [("FL208", "0.weight"), ("FL208", "0.bias")]
    with pytest.raises(KeyError):
        optimizer.state_dict()


def test_flags_are_in_no_checkpoint() -> None:
    plan = fl.Plan.freezing("0")
    model = net()
    fl.freeze(model, plan)
    resumed = net()
    resumed.load_state_dict(model.state_dict())
    assert codes(model, plan=plan) == set()
    findings = fl.check(resumed, plan=plan)
    assert [(f.code, f.where) for f in findings] == [("FL409", "0.weight"), ("FL409", "0.bias")]


def test_the_trainers_optimizer_held_two_parameters() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    fl.unfreeze(model, "0")
    assert codes(model, optimizer) == {"FL201"}
    assert not moved(model[0].weight, lambda: step(model, optimizer))


def test_reentrant_checkpointing_after_a_frozen_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.block, self.stem(x), use_reentrant=True))

    model = Net()
    x = torch.randn(3, 8)
    assert codes(model, example=x.clone().requires_grad_()) == set()
    model.stem.requires_grad_(False)
    findings = fl.check(model, example=x)
    assert [(f.code, f.where) for f in findings] == [
        ("FL504", "block.weight"),
        ("FL504", "block.bias"),
    ]


def test_the_whole_model_frozen() -> None:
    model = net().requires_grad_(False)
    assert codes(model) == {"FL401"}
    with pytest.raises(RuntimeError, match="does not require grad"):
        backward(model)


def test_features_made_under_inference_mode() -> None:
    model = net()
    with torch.inference_mode():
        features = torch.randn(3, 8) * 2
    assert codes(model, example=features) == {"FL405"}
    assert codes(model, example=(features,)) == {"FL405"}
    with pytest.raises(RuntimeError, match="Inference tensors"):
        model(features)
    with torch.inference_mode():
        made = net()
    assert codes(made) == {"FL405"}


def test_lazy_modules() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.LazyLinear(2))
    findings = fl.check(model, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL406", "1.weight"), ("FL406", "1.bias")]


def test_int8_parameters_that_are_to_train() -> None:
    model = net()
    model[0].weight = nn.Parameter(torch.zeros(4, 8, dtype=torch.int8), requires_grad=False)
    assert codes(model) == set()
    (finding,) = fl.check(model, plan=fl.Plan.training("0"))
    assert (finding.code, finding.where) == ("FL409", "0.weight")
    assert "int8 can't have gradients" in finding.message


def test_pefts_second_copies() -> None:
    wrapper = nn.Module()
    wrapper.original_module = nn.Linear(4, 2)
    wrapper.modules_to_save = nn.ModuleDict({"default": nn.Linear(4, 2)})
    model = nn.ModuleDict({"classifier": wrapper})
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL408", "classifier.original_module")]
    wrapper.original_module.requires_grad_(False)
    assert codes(model) == set()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("style", ["parametrization", "hook"])
def test_weight_norm_names(style: str) -> None:
    wrap = torch.nn.utils.parametrizations.weight_norm
    wrap = wrap if style == "parametrization" else torch.nn.utils.weight_norm
    model = nn.Sequential(wrap(nn.Linear(8, 4)), nn.Linear(4, 2))
    halves = [name for name, _ in model[0].named_parameters() if name != "bias"]
    dict(model[0].named_parameters())[halves[1]].requires_grad_(False)
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL407", f"0.{halves[1]}")]


def test_transformer_encoders_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(8, 2)})
    model.forward = lambda x, padding: model["head"](encoder(x, src_key_padding_mask=padding))
    padding = torch.tensor([[False, True]] * 3)
    batch = (torch.randn(3, 2, 8), padding)
    encoder.requires_grad_(False).eval()
    assert codes(model, example=batch) == {"FL112"}
    encoder.requires_grad_(True)
    fl.freeze(model, "encoder")
    assert codes(model, example=batch) == set()


# --- savings that do not come -----------------------------------------------------------------


def eight_layers() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(8)))


def test_the_first_seven_frozen_but_one_early_bias_trains() -> None:
    model = eight_layers()
    fl.freeze(model, all_but=["0.0.bias", "7"])
    (by_order,) = fl.check(model)
    assert (by_order.code, by_order.where) == ("FL501", "0.0.bias")
    (measured,) = fl.check(model, example=torch.randn(32, 64))
    assert measured.where == "0.0.bias"
    assert "88.0 KiB of activations, 32.0 KiB without it" in measured.message


def test_the_first_seven_frozen_but_the_input_requires_grad() -> None:
    model = eight_layers()
    fl.freeze(model, all_but="7")
    x = torch.randn(32, 64)
    assert codes(model, example=x) == set()
    assert codes(model, example=x.requires_grad_()) == {"FL502"}


def test_a_hook_that_makes_the_embedding_require_grad() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, all_but="2")
    model[0].register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    findings = fl.check(model, example=torch.arange(4))
    assert [(f.code, f.where) for f in findings] == [("FL502", "0")]


def test_frozen_by_a_hook_that_zeroes_gradients() -> None:
    model = eight_layers()
    for parameter in model[:7].parameters():
        parameter.register_hook(torch.zeros_like)
    findings = fl.check(model, example=torch.randn(2, 64))
    assert {f.code for f in findings} == {"FL503"}
    assert len(findings) == 14


def test_optimizer_state_stays_allocated_after_freezing() -> None:
    model = net()
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    step(model, optimizer)
    fl.freeze(model, "0")
    findings = fl.check(model, optimizer)
    assert [(f.code, f.where) for f in findings] == [("FL202", "0.weight"), ("FL202", "0.bias")]
    assert "256 B of its state (exp_avg, exp_avg_sq)" in findings[0].message
    fl.sync(model, optimizer)
    assert codes(model, optimizer) == set()
