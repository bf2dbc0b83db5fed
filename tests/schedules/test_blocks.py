from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from zoo import Net, SharedStorage, TiedLm, Vit

import frostline as fl
from frostline.errors import SelectorError
from frostline.finetune.networks import DigitsCNN, TutorialNet
from frostline.selection.blocks import blocks


def conv(out):
    return nn.Sequential(nn.LazyConv2d(out, 3), nn.BatchNorm2d(out), nn.ReLU())


class Unit(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3)
        self.bn1 = nn.BatchNorm2d(width)


class Stage(nn.Module):
    """As in timm: the blocks of a stage lie inside it."""

    def __init__(self):
        super().__init__()
        self.downsample = nn.Conv2d(4, 4, 1)
        self.blocks = nn.Sequential(Unit(), Unit())


class Named(nn.Module):
    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def residual():
    return Named(
        conv1=nn.Conv2d(3, 4, 3),
        bn1=nn.BatchNorm2d(4),
        **{f"layer{n}": nn.Sequential(Unit(), Unit()) for n in (1, 2, 3, 4)},
        fc=nn.Linear(4, 2),
    )


def mobile():
    first, last = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(4, 4, 1))
    body = [Unit() for _ in range(5)]
    return Named(features=nn.Sequential(first, *body, last), classifier=nn.Linear(4, 2))


def dense():
    parts = {"conv0": nn.Conv2d(3, 4, 3)}
    for n in (1, 2, 3):
        parts[f"denseblock{n}"] = nn.Sequential(Unit(), Unit())
        parts[f"transition{n}"] = Named(conv=nn.Conv2d(4, 4, 1))
    parts["norm5"] = nn.BatchNorm2d(4)
    return Named(features=Named(**parts), classifier=nn.Linear(4, 2))


def vgg():
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )
    return Named(
        features=features, classifier=nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    )


def both_ways():
    """A decoder that is small beside its encoder."""
    layer = nn.TransformerEncoderLayer(8, 2, 8)
    encoder = Named(
        embed_tokens=nn.Embedding(5, 8),
        layers=nn.ModuleList([copy.deepcopy(layer) for _ in range(6)]),
        layernorm_embedding=nn.LayerNorm(8),
        layer_norm=nn.LayerNorm(8),
    )
    decoder = Named(
        embed_tokens=encoder.embed_tokens,
        embed_positions=nn.Embedding(7, 8),
        layers=nn.ModuleList([copy.deepcopy(layer)]),
        layer_norm=nn.LayerNorm(8),
    )
    return Named(encoder=encoder, decoder=decoder, lm_head=nn.Linear(8, 5))


ENCODER = [f"encoder.layers.{n}" for n in range(6)]
CASES = {
    "digits-cnn": (DigitsCNN, ["block1", "block2", "block3"], ["stem"], ["head"]),
    "tutorial": (TutorialNet, ["fc1"], [], ["fc2"]),
    "module-list": (Net, ["layers.0", "layers.1", "layers.2"], ["stem"], ["head"]),
    "plain-in-a-list": (Vit, ["blocks.0", "blocks.1"], ["cls_token", "pos_embed"], ["head"]),
    "tied-head": (TiedLm, ["transformer.h"], ["transformer.wte"], ["lm_head"]),
    "residual": (residual, [f"layer{n}" for n in (1, 2, 3, 4)], ["conv1", "bn1"], ["fc"]),
    "mobile": (
        mobile,
        [f"features.{n}" for n in range(1, 6)],
        ["features.0"],
        ["features.6", "classifier"],
    ),
    "dense": (
        dense,
        [f"features.denseblock{n}" for n in (1, 2, 3)],
        ["features.conv0"],
        ["features.transition3", "features.norm5", "classifier"],
    ),
    "vgg": (
        vgg,
        ["features.0", "features.3", "classifier.0"],
        [],
        ["classifier.2"],
    ),
    "stages": (
        lambda: Named(stem=nn.Conv2d(3, 4, 1), stages=nn.Sequential(Stage(), Stage()), norm=Unit()),
        ["stages.0", "stages.1"],
        ["stem"],
        ["norm"],
    ),
    "encoder-decoder": (
        both_ways,
        [*ENCODER, "decoder.layers.0"],
        [
            "encoder.embed_tokens",
            "encoder.layernorm_embedding",
            "decoder.embed_tokens",
            "decoder.embed_positions",
        ],
        ["decoder.layer_norm", "lm_head"],
    ),
    "hybrid": (
        lambda: Named(layers=nn.ModuleList([Unit(), Stage(), Unit(), Stage()])),
        [f"layers.{n}" for n in range(4)],
        [],
        [],
    ),
    "one-in-a-wrapper": (
        lambda: Named(net=nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LSTM(4, 4))),
        ["net.0", "net.2"],
        [],
        [],
    ),
    "the-backbone-in-one": (
        lambda: Named(backbone=Named(a=nn.Linear(4, 4), b=nn.LSTM(4, 4)), head=nn.Linear(4, 2)),
        ["backbone.a", "backbone.b"],
        [],
        ["head"],
    ),
    "lazy": (
        lambda: Named(a=conv(4), b=conv(4), c=nn.Linear(4, 2)),
        ["a.0", "b.0"],
        [],
        ["c"],
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("case", CASES)
def test_found(case):
    make, names, stem, head = CASES[case]
    found = blocks(make())
    assert (list(found), list(found.stem), list(found.head)) == (names, stem, head)
    assert len(found) == len(names)


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_in_one_layer(case):
    model = CASES[case][0]()
    found = blocks(model)
    places = [
        [
            number
            for number, layer in enumerate(found.layers)
            if any(f"{name}.".startswith(f"{part}.") for part in layer)
        ]
        for name, _ in model.named_parameters(remove_duplicate=False)
    ]
    assert all(len(numbers) == 1 for numbers in places)
    assert [found.layer_of(name) for name, _ in model.named_parameters(remove_duplicate=False)] == [
        numbers[0] for numbers in places
    ]
    assert sum(found.numels) == fl.select(model, "**").numel


def test_what_lies_between_goes_with_the_block_before():
    found = blocks(both_ways())
    assert found.between[5] == ("encoder.layer_norm",)
    assert found.layers[6] == ("encoder.layers.5", "encoder.layer_norm")
    assert found.layer_of("encoder.layer_norm.weight") == 6


def test_a_shared_block_is_one_block():
    shared = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    other = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model = Named(layers=nn.ModuleList([shared, other, shared]), head=nn.Linear(4, 2))
    found = blocks(model)
    assert (found.names, found.head) == (("layers.0", "layers.1"), ("head",))
    assert found.layer_of("layers.2.0.weight") == 1


def test_wrappers_are_invisible():
    plain = blocks(Net())
    assert blocks(DataParallel(Net())) == plain
    assert blocks(torch.compile(Net(), backend="eager")) == plain


def test_on_meta():
    with torch.device("meta"):
        assert blocks(Net()).names == blocks(Net()).names


def test_printed():
    assert str(blocks(DigitsCNN())).splitlines() == [
        "stem  stem       352",
        "   0  block1  18,560",
        "   1  block2  36,992",
        "   2  block3  73,984",
        "head  head       645",
        "3 modules (Sequential) in the model",
    ]


def test_a_list_of_one_is_looked_into():
    inner = Named(layers=nn.ModuleList([Stage(), Stage()]), pooler=nn.Linear(4, 4))
    model = Named(towers=nn.ModuleList([inner]), head=nn.Linear(4, 2))
    assert blocks(model).names == ("towers.0.layers.0", "towers.0.layers.1")


def test_other_lists_are_named():
    model = Named(
        layers=nn.ModuleList([Stage() for _ in range(6)]), heads=nn.ModuleList([Unit(2), Unit(2)])
    )
    assert blocks(model).found == (
        "6 modules (Stage) in layers (not counted: 2 modules (Unit) in heads)"
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(nn.Linear(2, 2), "no blocks found in this Linear: name the blocks", id="one"),
        pytest.param(nn.Sequential(nn.ReLU()), "no blocks found", id="no-parameters"),
        pytest.param(Named(a=nn.Embedding(3, 2)), "no blocks found", id="embedding"),
        pytest.param(
            Named(attentions=nn.ModuleList([Unit(), Unit()]), ffns=nn.ModuleList([Unit(), Unit()])),
            "attentions and ffns are lists side by side",
            id="in-turn",
        ),
    ],
)
def test_none_found(model, message):
    with pytest.raises(SelectorError, match=message):
        blocks(model)


def test_named_by_the_user():
    found = blocks(Net(), ["layers.2", "layers.0"])
    assert found.names == ("layers.2", "layers.0")
    assert found.stem == ("stem",)
    assert found.between == ((), ("layers.1",))
    assert found.head == ("head",)
    assert found.found == "named by the user"
    assert [found.layer_of(f"layers.{n}.fc.bias") for n in (0, 1, 2)] == [2, 2, 1]
    assert blocks(Net(), "layers").names == ("layers.0", "layers.1", "layers.2")
    assert blocks(both_ways(), "encoder.layers").names == tuple(ENCODER)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["layers.0", "layrs.1"], r"no module 'layrs.1'. Nearest .*'layers.1'", id="?"),
        pytest.param(["layers", "layers.1"], "'layers.1' is inside 'layers'", id="overlap"),
        pytest.param(["layers.1", "layers"], "'layers.1' is inside 'layers'", id="overlap-below"),
        pytest.param(["layers.1", "layers.1"], "named twice", id="twice"),
        pytest.param(["layers.1", "drop"], "'drop' holds no parameters of its own", id="empty"),
        pytest.param([], "expected names of modules", id="none"),
        pytest.param([3], "expected names of modules", id="number"),
        pytest.param("drop", "'drop' holds no modules", id="container"),
        pytest.param("nowhere", "no module 'nowhere'", id="unknown-container"),
        pytest.param([""], "no module ''", id="root"),
    ],
)
def test_wrong_names(names, message):
    with pytest.raises(SelectorError, match=message):
        blocks(Net(), names)


def test_two_parameters_on_one_memory():
    found = blocks(SharedStorage(), ["a", "b", "c"][:1])
    assert found.names == ("a",)
    with pytest.raises(SelectorError, match="'b' holds no parameters of its own"):
        blocks(SharedStorage(), ["a", "b"])


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
EIGHT = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]}
HALVES = {
    "d_model": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 50,
}
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2, "vocab_size": 50}
TEXT, LM, IMAGE = "SequenceClassification", "CausalLM", "ImageClassification"

ARCHITECTURES = [
    ("Bert", TEXT, {**SIZES, "num_hidden_layers": 3}, ["bert.encoder.layer"], 3),
    ("Roberta", TEXT, {**SIZES, "num_hidden_layers": 3}, ["roberta.encoder.layer"], 3),
    ("Albert", TEXT, {**SIZES, "embedding_size": 8}, ["albert.encoder.albert_layer_groups"], 1),
    ("GPT2", LM, GPT, ["transformer.h"], 3),
    ("Llama", LM, {**SIZES, "num_hidden_layers": 3}, ["model.layers"], 3),
    ("Mamba", LM, {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 50}, ["layers"], 3),
    ("T5", "Seq2SeqLM", T5, ["encoder.block", "decoder.block"], 6),
    ("Bart", "Seq2SeqLM", {**HALVES, "decoder_layers": 2}, ["encoder.layers", "decoder.layers"], 5),
    (
        "Whisper",
        "SpeechSeq2Seq",
        {**HALVES, **TOKENS, "decoder_layers": 1},
        ["encoder.layers", "decoder.layers"],
        4,
    ),
    ("ViT", IMAGE, {**SIZES, "num_hidden_layers": 3, "image_size": 16}, ["layer"], 3),
    ("ResNet", IMAGE, {**EIGHT, "embedding_size": 8}, ["resnet.encoder.stages"], 4),
    ("ConvNext", IMAGE, EIGHT, ["convnext.encoder.stages"], 4),
    (
        "Swin",
        IMAGE,
        {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "image_size": 16, "patch_size": 2},
        ["swin.encoder.layers"],
        2,
    ),
    ("MobileNetV2", IMAGE, {"depth_multiplier": 0.25}, ["mobilenet_v2.layer"], 16),
]


@pytest.mark.parametrize(
    ("name", "task", "options", "containers", "count"), ARCHITECTURES, ids=lambda v: str(v)[:12]
)
def test_transformers(name, task, options, containers, count):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(**options)
        model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    found = blocks(model)
    assert len(found) == count
    holders = list(dict.fromkeys(name.rpartition(".")[0] for name in found))
    assert len(holders) == len(containers)
    assert all(
        # The ViT's list is called layer or layers, with the release.
        holder.removesuffix("s").endswith(ending.removesuffix("s"))
        for holder, ending in zip(holders, containers, strict=True)
    )
    for parameter, _ in model.named_parameters(remove_duplicate=False):
        found.layer_of(parameter)
    assert found.stem
    assert found.head
    embeddings = [name for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    assert {found.layer_of(name) for name in embeddings if "relative" not in name} <= {0}
