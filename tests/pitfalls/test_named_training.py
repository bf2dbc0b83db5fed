"""What ``fl.check`` names in training that is wrong, each fault shown to be there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from faults import backward, codes, net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import frostline as fl


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


def test_flags_are_in_no_checkpoint() -> None:
    plan = fl.Plan.freezing("0")
    model = net()
    fl.freeze(model, plan)
    resumed = net()
    resumed.load_state_dict(model.state_dict())
    assert codes(model, plan=plan) == set()
    findings = fl.check(resumed, plan=plan)
    assert [(f.code, f.where) for f in findings] == [("FL409", "0.weight"), ("FL409", "0.bias")]


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
