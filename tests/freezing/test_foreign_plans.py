from __future__ import annotations

import json

import pytest
from torch import nn
from zoo import Net

import frostline as fl
from frostline.freezing.foreign import foreign_rules


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4, bias=False)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = Attention()
        self.mlp = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class Decoder(nn.Module):
    """Named as Llama names its parts; 12 layers, so that 1 and 10 can be confused."""

    def __init__(self, layers=12):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(10, 4)
        self.model.layers = nn.ModuleList([Layer() for _ in range(layers)])
        self.model.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 10, bias=False)


def trained(text, tmp_path, model=None):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    model = model or Decoder()
    plan = fl.Plan.load(path)
    assert fl.Plan.parse(plan.to_yaml()) == plan
    fl.freeze(model, plan)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def layer(*numbers, parts=("self_attn.q_proj", "mlp", "norm")):
    names = {name for name, _ in Decoder().named_parameters()}
    heads = tuple(f"model.layers.{n}.{part}." for n in numbers for part in parts)
    return {name for name in names if name.startswith(heads)}


HEAD, EMBEDDING = {"lm_head.weight"}, {"model.embed_tokens.weight"}
NORM = {"model.norm.weight", "model.norm.bias"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param(
            "unfrozen_parameters:\n- ^lm_head.weight$\n- model.layers.1[01].mlp\n",
            HEAD | layer(10, 11, parts=("mlp",)),
            id="spectrum",
        ),
        pytest.param(
            "base_model: x\nlearning_rate: 1e-5\nunfrozen_parameters: ['model.layers.1.mlp']\n",
            layer(1, parts=("mlp",)),
            id="a-dot-is-a-dot-so-1-is-not-10",
        ),
        pytest.param(
            r"unfrozen_parameters: ['model\.layers\.[0-9]+\.norm.+']",
            layer(*range(12), parts=("norm",)),
            id="dot-plus-is-a-wildcard",
        ),
        pytest.param(
            "unfrozen_parameters: ['lm_head|model.norm']", HEAD | NORM, id="alternatives-anchored"
        ),
        pytest.param("finetuning_type: freeze", layer(10, 11), id="llamafactory-last-2-by-default"),
        pytest.param(
            "finetuning_type: freeze\nfreeze_trainable_layers: -1\nstage: sft\n",
            layer(0),
            id="llamafactory-first",
        ),
        pytest.param(
            "finetuning_type: freeze\nfreeze_trainable_layers: 2\n"
            "freeze_trainable_modules: mlp, norm\nfreeze_extra_modules: embed_tokens,norm\n",
            layer(10, 11, parts=("mlp", "norm")) | EMBEDDING | NORM,
            id="llamafactory-modules-and-extra",
        ),
        pytest.param(
            "freeze_trainable_layers: 0\nfreeze_extra_modules: [lm_head]\n",
            HEAD,
            id="llamafactory-only-extra",
        ),
        pytest.param(
            "freeze_parameters_ratio: 1.0\ntrainable_parameters: [model.layers.1]\n",
            layer(1, 10, 11),
            id="swift-a-prefix-of-the-text",
        ),
        pytest.param(
            "tuner_type: full\nfreeze_parameters: [model.embed, model.layers]\n"
            "trainable_parameters_regex: '1\\.mlp'\n",
            NORM | HEAD | layer(1, 11, parts=("mlp",)),
            id="swift-regex-trains-again",
        ),
        pytest.param(
            "freeze_parameters_regex: '^model'\nfreeze_parameters: []\nfreeze_vit: false\n",
            HEAD,
            id="swift-regex",
        ),
        pytest.param("freeze_to: -1", NORM | HEAD, id="freeze-to-the-top"),
        pytest.param("freeze_to: 12", layer(11) | NORM | HEAD, id="freeze-to-from-below"),
    ],
)
def test_what_trains(text, names, tmp_path):
    assert trained(text, tmp_path) == names


def test_freeze_to_0_thaws_all(tmp_path):
    model = Decoder().requires_grad_(False)
    assert len(trained("freeze_to: 0", tmp_path, model)) == len(list(model.parameters()))


def test_swift_ratio_counts_scalars_from_below(tmp_path):
    # 40 in the embedding, 44 in each of the 12 layers, 8 and 40 above: 616. A tensor that would
    # go beyond the share is not frozen, and nothing after it.
    text = json.dumps({"freeze_parameters_ratio": 0.1, "freeze_parameters_regex": None})
    everything = {name for name, _ in Decoder().named_parameters()}
    frozen = everything - trained(text, tmp_path)
    assert frozen == EMBEDDING | {"model.layers.0.self_attn.q_proj.weight"}


@pytest.mark.parametrize(
    ("pattern", "calls"),
    [
        pytest.param(
            "^model.embed_tokens.weight$[0:3]",
            [r"fl.freeze_rows(model, 're:^model\\.embed_tokens\\.weight$', slice(3, None))"],
            id="first-rows",
        ),
        pytest.param("lm_head[2:]", ["slice(0, 2))"], id="last-rows"),
        pytest.param("lm_head[2:5]", ["slice(0, 2))", "slice(5, None))"], id="between"),
        pytest.param("lm_head[7]", ["slice(0, 7))", "slice(8, None))"], id="one"),
    ],
)
def test_rows_are_refused_with_the_call_that_does_it(pattern, calls):
    with pytest.raises(fl.PlanError, match=r"entry 2: .* trains some rows") as caught:
        fl.Plan.parse(f"unfrozen_parameters: [lm_head, '{pattern}']", source="axolotl.yaml")
    message = str(caught.value)
    assert message.startswith("axolotl.yaml (Axolotl): ")
    assert all(call in message for call in calls)
    assert message.count("fl.freeze_rows") == len(calls)


def test_the_call_that_is_named_does_it():
    model = Decoder()
    fl.freeze(model, fl.Plan.parse("unfrozen_parameters: ['^model.embed_tokens.weight$']"))
    held = fl.freeze_rows(model, r"re:^model\.embed_tokens\.weight$", slice(3, None))
    assert held.rows == {"model.embed_tokens.weight": (3, 4, 5, 6, 7, 8, 9)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("unfrozen_paramters: [a]", "Nearest names: 'unfrozen_parameters'", id="typo"),
        pytest.param("unfrozen_parameters: []", "the list is empty", id="axolotl-empty"),
        pytest.param("unfrozen_parameters: [3]", "expected a list of strings", id="axolotl-number"),
        pytest.param("unfrozen_parameters: ['a[:]']", "trains all rows", id="axolotl-all-rows"),
        pytest.param("unfrozen_parameters: ['a[5:5]']", "trains no row", id="axolotl-no-row"),
        pytest.param("unfrozen_parameters: ['a(']", "not a regular expression", id="axolotl-regex"),
        pytest.param(
            "unfrozen_parameters: [a]\nadapter: lora", "'adapter: lora' can't", id="axolotl-lora"
        ),
        pytest.param(
            "unfrozen_parameters: [a]\nlisa_n_layers: 4", "a schedule: 'lisa'", id="axolotl-lisa"
        ),
        pytest.param(
            "unfrozen_parameters: [a]\nfreeze_to: 1",
            "mixes fields of Axolotl and fastai",
            id="mixed",
        ),
        pytest.param("finetuning_type: lora", "'finetuning_type: lora' can't", id="lf-lora"),
        pytest.param("finetuning_type: full", "'full' freezes nothing", id="lf-full"),
        pytest.param("freeze_trainable_layers: two", "a whole number, got 'two'", id="lf-word"),
        pytest.param("freeze_trainable_layers: true", "a whole number, got True", id="lf-bool"),
        pytest.param("freeze_trainable_layers: 0", "nothing would train", id="lf-nothing"),
        pytest.param("freeze_extra_modules: 'a,,b'", "an entry is empty", id="lf-empty-entry"),
        pytest.param(
            "finetuning_type: freeze\nuse_llama_pro: true", "LLaMA-Factory inserts", id="lf-pro"
        ),
        pytest.param(
            "finetuning_type: freeze\nuse_badam: true", "a schedule: 'badam'", id="lf-badam"
        ),
        pytest.param(
            "finetuning_type: freeze\nfreeze_vision_tower: false", "another name", id="lf-vision"
        ),
        pytest.param("freeze_parameters_ratio: 50", "from 0 to 1, got 50", id="swift-percent"),
        pytest.param("freeze_parameters_ratio: true", "from 0 to 1, got True", id="swift-bool"),
        pytest.param("freeze_parameters_ratio: 0.0", "neither it nor its like", id="swift-nothing"),
        pytest.param("trainable_parameters: [a]", "neither it nor its like", id="swift-train-only"),
        pytest.param("freeze_parameters_regex: '['", "not a regular", id="swift-regex"),
        pytest.param("freeze_parameters_regex: 3", "expected a string", id="swift-regex-number"),
        pytest.param(
            "freeze_parameters: [a]\ntrain_type: lora", "'train_type: lora' can't", id="swift-lora"
        ),
        pytest.param(
            "freeze_parameters: [a]\nfreeze_vit: true", "put its prefix into", id="swift-vision"
        ),
        pytest.param(
            "freeze_parameters: [a]\nfreeze_llm: true", "name its prefix", id="swift-language"
        ),
        pytest.param("freeze_to: 1.5", "a whole number, got 1.5", id="fastai-float"),
        pytest.param("freeze_to:", "expected a whole number, got nothing", id="fastai-none"),
        pytest.param("freeze_to: 1\ntrain_bn: true", "unknown key 'train_bn'", id="fastai-extra"),
    ],
)
def test_refused(text, message):
    with pytest.raises(fl.PlanError, match=message) as caught:
        fl.Plan.parse(text, source="config.yaml")
    assert str(caught.value).startswith("config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("finetuning_type: freeze\nfreeze_trainable_layers: 9", "9 of the 3", id="lf"),
        pytest.param("freeze_to: 6", "asks for 6 of the 5 layers", id="fastai"),
        pytest.param("freeze_parameters: [nowhere]", "matches none", id="swift"),
        pytest.param("unfrozen_parameters: [fc]", "matches none", id="axolotl-matches-the-start"),
    ],
)
def test_what_the_model_does_not_have(text, message):
    with pytest.raises(fl.SelectorError, match=message):
        fl.freeze(Net(), fl.Plan.parse(text))


def test_our_own_files_are_not_taken_for_others():
    assert foreign_rules({"frostline": 1}, source="plan.yaml") is None
    with pytest.raises(fl.PlanError, match="unknown key 'freeze_to'"):
        fl.Plan.parse("frostline: 1\nrules: [{freeze: a}]\nfreeze_to: 1")
