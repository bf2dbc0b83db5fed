from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import Net, SharedStorage, TiedLm, Vit

import frostline as fl
from frostline.selection import Selector, as_selector, from_plain


class Many(nn.Module):
    """Names that careless patterns confuse."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 2)
        self.fc10 = nn.Linear(2, 2)
        self.encoder = nn.Module()
        self.encoder.fc1 = nn.Linear(2, 2)
        self.encoder.layer = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(12)])


LAYER = "encoder.layer.{}.weight".format

CASES = [
    pytest.param(
        Many,
        "fc1",
        ["fc1.weight", "fc1.bias", "encoder.fc1.weight", "encoder.fc1.bias"],
        id="whole-component-anywhere",
    ),
    pytest.param(Many, "layer.1", [LAYER(1)], id="layer-1-is-not-layer-10"),
    pytest.param(Many, "encoder.fc1.bias", ["encoder.fc1.bias"], id="full-name"),
    pytest.param(Many, " fc10.bias ", ["fc10.bias"], id="spaces-around"),
    pytest.param(Many, "fc1.*", ["fc1.weight", "fc1.bias"], id="glob-is-over-the-whole-name"),
    pytest.param(Many, "encoder.layer.?.weight", [LAYER(i) for i in range(10)], id="glob-one"),
    pytest.param(Many, "encoder.layer.[0-2].**", [LAYER(i) for i in range(3)], id="glob-range"),
    pytest.param(Many, "encoder.layer.1[!0].*", [LAYER(11)], id="glob-negated-class"),
    pytest.param(
        Many, "**.bias", ["fc1.bias", "fc10.bias", "encoder.fc1.bias"], id="glob-leading-stars"
    ),
    pytest.param(Many, "encoder.**.bias", ["encoder.fc1.bias"], id="glob-inner-stars"),
    pytest.param(Many, r"re:^fc1\.", ["fc1.weight", "fc1.bias"], id="regex-searches"),
    pytest.param(Many, "first:2:layer", [LAYER(0), LAYER(1)], id="first"),
    pytest.param(Many, "last:1:encoder.layer", [LAYER(11)], id="last"),
    pytest.param(Many, "first:1", ["fc1.weight", "fc1.bias"], id="first-of-the-model"),
    pytest.param(
        Many,
        "before:encoder.fc1",
        ["fc1.weight", "fc1.bias", "fc10.weight", "fc10.bias"],
        id="before",
    ),
    pytest.param(Vit, "cls_token", ["cls_token"], id="parameter-of-the-root"),
    pytest.param(
        Vit,
        "before:blocks.1",
        ["cls_token", "pos_embed", "blocks.0.weight", "blocks.0.bias"],
        id="before-includes-the-roots-own",
    ),
    pytest.param(Vit, "first:1:blocks", ["blocks.0.weight", "blocks.0.bias"], id="sequential"),
    pytest.param(
        lambda: Net(2),
        "type:BatchNorm1d",
        [
            "layers.0.norm.weight",
            "layers.0.norm.bias",
            "layers.1.norm.weight",
            "layers.1.norm.bias",
        ],
        id="type",
    ),
    pytest.param(
        lambda: Net(1),
        "type:torch.nn.modules.batchnorm._BatchNorm",
        ["layers.0.norm.weight", "layers.0.norm.bias"],
        id="type-qualified-base-class",
    ),
    pytest.param(
        lambda: Net(1),
        "type:Block",
        ["layers.0.fc.weight", "layers.0.fc.bias", "layers.0.norm.weight", "layers.0.norm.bias"],
        id="type-covers-what-is-inside",
    ),
    pytest.param(TiedLm, "lm_head", ["transformer.wte.weight"], id="any-alias-of-a-tie"),
    pytest.param(TiedLm, "wte", ["transformer.wte.weight"], id="the-other-alias"),
    pytest.param(
        TiedLm,
        "before:lm_head",
        ["transformer.h.weight", "transformer.h.bias"],
        id="before-leaves-the-target-out",
    ),
    pytest.param(SharedStorage, "b", ["a.weight", "b.weight"], id="storage-alias"),
]


@pytest.mark.parametrize(("model", "selector", "names"), CASES)
def test_strings(model, selector, names):
    assert list(fl.select(model(), selector).names) == names


@pytest.mark.parametrize(("model", "selector", "names"), CASES)
def test_a_string_survives_being_written_and_read(model, selector, names):
    again = from_plain(Selector.parse(selector).plain())
    assert list(fl.select(model(), again).names) == names


OBJECTS = [
    pytest.param(fl.glob("fc1.*"), ["fc1.weight", "fc1.bias"], id="glob"),
    pytest.param(fl.glob("fc1.bias"), ["fc1.bias"], id="glob-without-a-wildcard-is-exact"),
    pytest.param(fl.regex(r"10\.b"), ["fc10.bias"], id="regex"),
    pytest.param(fl.last(2, "encoder.layer"), [LAYER(10), LAYER(11)], id="last"),
    pytest.param(fl.first(1, "layer") | "fc10.bias", ["fc10.bias", LAYER(0)], id="or-a-string"),
    pytest.param("fc10.bias" | fl.first(1, "layer"), ["fc10.bias", LAYER(0)], id="a-string-or"),
    pytest.param(
        as_selector("fc1") & "encoder", ["encoder.fc1.weight", "encoder.fc1.bias"], id="and"
    ),
    pytest.param("bias" & ~fl.glob("encoder.**"), ["fc1.bias", "fc10.bias"], id="and-not"),
    pytest.param(fl.where(lambda name, p: p.ndim == 1 and "10" in name), ["fc10.bias"], id="where"),
    pytest.param(["fc10.bias", "layer.3"], ["fc10.bias", LAYER(3)], id="list"),
]


@pytest.mark.parametrize(("selector", "names"), OBJECTS)
def test_objects(selector, names):
    assert list(fl.select(Many(), selector).names) == names


def test_modules_and_parameters_are_selectors():
    model = Many()
    assert fl.select(model, model.fc10).names == ("fc10.weight", "fc10.bias")
    assert fl.select(model, model.fc10.bias).names == ("fc10.bias",)
    with pytest.raises(fl.SelectorError, match="matches none"):
        fl.select(model, nn.Linear(2, 2))


@pytest.mark.parametrize(
    "selector",
    [
        pytest.param(fl.kind(nn.Linear, nn.LayerNorm), id="classes"),
        pytest.param(fl.glob("a.b"), id="glob-without-a-wildcard"),
        pytest.param("a.*" & ~fl.kind(nn.BatchNorm2d), id="composed"),
    ],
)
def test_what_was_written_and_read_is_equal(selector):
    again = from_plain(selector.plain())
    assert again == selector
    assert hash(again) == hash(selector)
    assert again != fl.glob("other.*")


def test_a_class_may_be_named_as_it_is_imported():
    assert len(fl.select(Net(2), "type:torch.nn.BatchNorm1d")) == 4


@pytest.mark.parametrize("count", ["2", 2.0, True], ids=str)
def test_a_count_that_is_no_whole_number(count):
    with pytest.raises(fl.SelectorError, match="takes a whole number"):
        fl.first(count, "layer")


def test_something_else_in_place_of_a_model():
    with pytest.raises(fl.ModelTypeError, match="got str; the model comes first") as caught:
        fl.select("fc1", Many())
    assert isinstance(caught.value, TypeError)


def test_kind_counts_subclasses_and_several():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2), nn.Linear(2, 2))
    assert fl.select(model, fl.kind(nn.modules.batchnorm._BatchNorm)).names == (
        "0.weight",
        "0.bias",
    )
    assert len(fl.select(model, fl.kind(nn.BatchNorm1d, nn.LayerNorm))) == 4


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        pytest.param("fc2", "Nearest names: 'fc1'", id="typo"),
        pytest.param("layer.12", "matches none of the model's 18 parameters", id="no-such-layer"),
        pytest.param(
            "encoder.layer.*", r"did you mean 'encoder.layer.\*.\*\*'", id="glob-too-short"
        ),
        pytest.param("type:Liner", "Nearest names: 'Linear'", id="class-typo"),
        pytest.param("re:(", "not a regular expression", id="bad-regex"),
        pytest.param("layer.[0-", "nothing closes", id="open-bracket"),
        pytest.param("layer.[9-0]", "bad class", id="reversed-range"),
        pytest.param("a..b", "empty component", id="two-dots"),
        pytest.param("", "is empty", id="empty"),
        pytest.param("re:", "is empty", id="empty-regex"),
        pytest.param("name:fc1", "unknown kind 'name'", id="unknown-scheme"),
        pytest.param("first:fc1", "expected a count", id="no-count"),
        pytest.param("first:0:layer", "not 1 or more", id="zero"),
        pytest.param("first:13:layer", "which has 12 with parameters", id="too-many"),
        pytest.param("before:fc11", "Nearest names: 'fc1'", id="before-typo"),
        pytest.param("last:1:laier", "has no 'laier'", id="container-typo"),
        pytest.param("before:fc1", "matches none", id="nothing-before"),
        pytest.param(as_selector("fc10") & "layer", "no parameter matches all", id="empty-and"),
        pytest.param(~fl.glob("**"), "opposite matches everything", id="not-everything"),
        pytest.param(as_selector("fc1") | "fc2", "'fc2' matches none", id="typo-behind-an-or"),
        pytest.param([], "empty list", id="empty-list"),
        pytest.param(3, "cannot select by 3", id="number"),
    ],
)
def test_refusals(selector, message):
    with pytest.raises(fl.SelectorError, match=message) as caught:
        fl.select(Many(), selector)
    assert isinstance(caught.value, ValueError)


def test_an_ambiguous_place_is_refused():
    model = nn.ModuleDict(
        {"a": nn.ModuleDict({"x": nn.Linear(1, 1)}), "b": nn.ModuleDict({"x": nn.Linear(1, 1)})}
    )
    with pytest.raises(fl.SelectorError, match=r"'x' could be 'a.x', 'b.x'"):
        fl.select(model, "before:x")


def test_a_model_without_parameters():
    with pytest.raises(fl.SelectorError, match="the model has no parameters"):
        fl.select(nn.ReLU(), "**")


def test_a_function_or_an_object_cannot_be_written():
    for selector in (fl.where(lambda n, p: True), as_selector(nn.Linear(1, 1))):
        with pytest.raises(fl.SelectorError, match="cannot be written"):
            selector.plain()


def test_selection_counts_shared_memory_once():
    selection = fl.select(TiedLm(), "**")
    assert (selection.numel, selection.bytes, len(selection)) == (24 + 20, 4 * 44, 3)
    assert all(isinstance(p, nn.Parameter) for p in selection.parameters)


def test_wrapped_in_compile_the_same_names():
    assert fl.select(torch.compile(Many(), backend="eager"), "first:1").names == (
        "fc1.weight",
        "fc1.bias",
    )
