from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetune_files as files
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import ConfigError, ModelSourceError
from frostline.finetune.sources.base import Sources
from frostline.finetune.sources.opening import open_model

Open = Callable[..., Sources]


def batch_of(sources: Sources, count: int = 4) -> Any:
    return sources.collate([sources.train[place] for place in range(count)])


def len_of(row: dict[str, torch.Tensor]) -> int:
    return int(row["attention_mask"].sum())


def assert_trains_and_repeats(first: Sources, second: Sources) -> None:
    """The loss has gradients for the head, and another opening gives the same bits."""
    batch, again = batch_of(first), batch_of(second)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    one, other = first.model.eval()(**batch).loss, second.model.eval()(**again).loss
    assert torch.equal(one, other)
    one.backward()
    for selector in first.head:
        chosen = fl.select(first.model, selector)
        assert all(parameter.grad is not None for parameter in chosen.parameters)


def test_images(vit: Path, tmp_path: Path, open_: Open) -> None:
    said: list[str] = []
    data = files.images(tmp_path / "pictures", each=8)
    sources = open_(vit, data, note=said.append)
    assert sources.kind == "image-classification"
    assert sources.labels == ("blue", "green", "red")
    assert sources.head == ("classifier",)
    assert sources.new == ("classifier.weight", "classifier.bias")
    assert sources.base == vit
    assert (len(sources.train), len(sources.held_out)) == (18, 6)
    assert sorted(int(sources.held_out[place][1]) for place in range(6)) == [0, 0, 1, 1, 2, 2]
    assert batch_of(sources)["pixel_values"].shape == (4, 3, 16, 16)
    assert said == [f"checking 24 images in {data}"]
    # Blue first, and mostly blue: channels are in their places.
    pixels, label = sources.train[0]
    assert label == 0
    assert pixels[2].mean() > 0 > pixels[0].mean()
    assert_trains_and_repeats(sources, open_(vit, data, note=said.append))
    assert len(said) == 1  # the second time nothing is checked again
    assert open_(vit, data).identity == sources.identity != open_(vit, data, seed=1).identity


def test_images_in_splits(vit: Path, tmp_path: Path, open_: Open) -> None:
    files.images(tmp_path / "data" / "train", each=3)
    files.images(tmp_path / "data" / "val", each=1)
    sources = open_(vit, tmp_path / "data")
    assert (len(sources.train), len(sources.held_out)) == (9, 3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_texts_with_labels(bert: Path, tmp_path: Path, open_: Open, suffix: str) -> None:
    data = files.reviews(tmp_path / f"reviews.{suffix}", each=8)
    sources = open_(bert, data)
    assert sources.kind == "text-classification"
    assert sources.labels == ("bad", "good")
    # The pooler is new too: it would stay random if it were frozen.
    assert sources.head == ("classifier", "bert.pooler.dense")
    assert (len(sources.train), len(sources.held_out)) == (12, 4)
    batch = batch_of(sources, 12)
    assert batch["input_ids"].shape == (12, 8)  # the longest has eight, all are padded alike
    assert batch["attention_mask"].sum(1).tolist() == [
        len([token for token in row if token != 0]) for row in batch["input_ids"].tolist()
    ]
    assert sources.model.config.id2label == {0: "bad", 1: "good"}
    assert_trains_and_repeats(sources, open_(bert, data))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_words_with_tags(bert: Path, tmp_path: Path, open_: Open, suffix: str) -> None:
    data = files.sentences(tmp_path / f"words.{suffix}")
    sources = open_(bert, data)
    assert sources.kind == "token-classification"
    assert sources.labels == ("B-MOOD", "B-TIME", "B-WORK", "O")
    tokenizer: Any = sources.companions[0]
    row = next(row for row in map(sources.train.__getitem__, range(6)) if len_of(row) == 6)
    # A word's first token has its tag, nothing else has one.
    words = tokenizer.convert_ids_to_tokens(row["input_ids"][:6])
    tags = [None if tag < 0 else sources.labels[tag] for tag in row["labels"].tolist()]
    assert words == ["[CLS]", "the", "warm", "film", "on", "[SEP]"]
    assert tags == [None, "O", "B-MOOD", "B-WORK", "O", *[None] * (len(tags) - 5)]
    assert_trains_and_repeats(sources, open_(bert, data))


def test_a_word_of_many_tokens_has_one_tag(bert: Path, tmp_path: Path, open_: Open) -> None:
    rows = [{"tokens": ["warmfilm", "the"], "tags": [1, 0]}] * 4
    sources = open_(bert, files.table(tmp_path / "a.jsonl", rows))
    row = sources.train[0]
    tokens = int(row["attention_mask"].sum()) - 2
    assert tokens > 2
    labels = row["labels"][: tokens + 2].tolist()
    assert labels == [-100, 1, *[-100] * (tokens - 2), 0, -100]


def test_text_is_packed_into_blocks(gpt2: Path, tmp_path: Path, open_: Open) -> None:
    data = tmp_path / "tale.txt"
    data.write_text(files.TALE)
    sources = open_(gpt2, data, max_length=32)
    assert sources.kind == "causal-lm"
    assert sources.labels == ()
    assert sources.head == ()  # tied to the embedding
    tokenizer: Any = sources.companions[0]
    ids = [token for place in range(len(sources.train)) for token in sources.train[place]["labels"]]
    ids += [token for row in map(sources.held_out.__getitem__, range(len(sources.held_out)))
            for token in row["input_ids"]]  # fmt: skip
    assert files.TALE.startswith(tokenizer.decode(ids).removesuffix("<|endoftext|>"))
    assert len(ids) % 32 == 0
    assert_trains_and_repeats(sources, open_(gpt2, data, max_length=32))


def test_each_text_of_a_table_ends(gpt2: Path, tmp_path: Path, open_: Open) -> None:
    rows = [{"text": "the film"}, {"text": "the year"}] * 40
    sources = open_(gpt2, files.table(tmp_path / "a.csv", rows), max_length=8)
    tokenizer: Any = sources.companions[0]
    text = tokenizer.decode([t for place in range(4) for t in sources.train[place]["input_ids"]])
    assert text.startswith("the film<|endoftext|>the year<|endoftext|>the film")


def test_a_long_text_is_tokenised_in_pieces(
    gpt2: Path, tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "tale.txt"
    data.write_text(files.TALE)
    whole = open_(gpt2, data)
    monkeypatch.setattr("frostline.finetune.sources.blocks._PIECE_CHARACTERS", 200)
    pieces = open_(gpt2, data)
    assert all(
        torch.equal(whole.train[place]["input_ids"], pieces.train[place]["input_ids"])
        for place in range(len(whole.train))
    )
    assert len(whole.train) == len(pieces.train) > 10


def test_task_given_over_the_models_own(gpt2: Path, tmp_path: Path, open_: Open) -> None:
    data = files.reviews(tmp_path / "reviews.csv", each=8)
    own = open_(gpt2, data, max_length=8)
    assert own.kind == "causal-lm"
    assert "task says which" in " ".join(own.notes)
    sources = open_(gpt2, data, kind="text-classification")
    assert sources.head == ("score",)
    assert sources.model.config.pad_token_id == 0
    assert sources.model(**batch_of(sources)).logits.shape == (4, 2)


def test_pairs(bert: Path, tmp_path: Path, open_: Open) -> None:
    rows = [
        {"sentence1": "the film", "sentence2": "a year", "label": place % 2} for place in range(8)
    ]
    sources = open_(bert, files.table(tmp_path / "pairs.jsonl", rows))
    row = sources.train[0]
    assert row["token_type_ids"].tolist()[:8] == [0, 0, 0, 0, 1, 1, 1, 0]
    assert sources.labels == ("0", "1")


def test_columns_of_other_names(bert: Path, tmp_path: Path, open_: Open) -> None:
    rows = [{"was": "the film", "wie": name} for name in ("gut", "arg")] * 4
    data = files.table(tmp_path / "a.csv", rows)
    sources = open_(bert, data, columns={"text": "was", "label": "wie"})
    assert sources.labels == ("arg", "gut")


def test_files_are_splits_by_their_names(bert: Path, tmp_path: Path, open_: Open) -> None:
    for name, each in (("train-1", 4), ("train-2", 3), ("my_dev", 2), ("test", 5)):
        files.reviews(tmp_path / "data" / f"{name}.csv", each=each)
    sources = open_(bert, tmp_path / "data")
    assert (len(sources.train), len(sources.held_out)) == (14, 4)
    assert f"not used of {tmp_path / 'data'}: test.csv" in sources.notes


def test_saved_by_datasets(bert: Path, tmp_path: Path, open_: Open) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes", "oh"])}
    )
    rows = {"text": ["the film", "a year"] * 6, "label": [0, 1] * 6}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=part, test=part.select(range(4))).save_to_disk(tmp_path / "saved")
    sources = open_(bert, tmp_path / "saved")
    assert sources.labels == ("no", "yes", "oh")  # as declared, though one has no sample
    assert (len(sources.train), len(sources.held_out)) == (12, 4)
    assert open_(bert, tmp_path / "saved").identity == sources.identity


@pytest.mark.parametrize(
    ("names", "labels", "kept"),
    [
        pytest.param({"good": "GOOD", "bad": "BAD"}, ("good", "bad", "odd"), True, id="same-names"),
        pytest.param({"good": 0, "bad": 1}, ("0", "1"), False, id="numbers-of-another-count"),
        pytest.param({"good": "up", "bad": "down"}, ("down", "up"), False, id="other-names"),
    ],
)
def test_the_models_head_is_kept_if_it_knows_the_classes(
    tmp_path: Path, open_: Open, names: dict[str, object], labels: tuple[str, ...], kept: bool
) -> None:
    model = files.bert(tmp_path / "model", labels=("good", "bad", "odd"))
    sources = open_(model, files.reviews(tmp_path / "a.csv", names=names))
    assert sources.labels == labels
    assert sources.new == (() if kept else ("classifier.weight", "classifier.bias"))
    if kept:
        # "fine" is in good reviews only: their number is the model's, not the alphabet's.
        tokenizer: Any = sources.companions[0]
        fine = tokenizer.convert_tokens_to_ids("fine")
        rows = map(sources.train.__getitem__, range(len(sources.train)))
        assert {int(row["labels"]) for row in rows if fine in row["input_ids"]} == {0}


def test_model_and_data_from_code(tmp_path: Path, open_: Open) -> None:
    (tmp_path / "job.py").write_text(
        "import torch\n"
        "def model():\n    return torch.nn.Linear(3, 2)\n"
        "def data():\n"
        "    x = torch.arange(24.0).view(8, 3)\n"
        "    return torch.utils.data.TensorDataset(x, torch.arange(8) % 2)\n"
    )
    sources = open_(f"{tmp_path}/job.py:model", f"{tmp_path}/job.py:data")
    assert sources.kind == "custom"
    assert (len(sources.train), len(sources.held_out)) == (6, 2)
    inputs, targets = batch_of(sources, 2)
    assert sources.model(inputs).shape == (2, 2)
    assert targets.shape == (2,)


def test_pretrained_model_on_data_from_code(bert: Path, tmp_path: Path, open_: Open) -> None:
    (tmp_path / "data.py").write_text(
        "import torch\n"
        "class Words(torch.utils.data.Dataset):\n"
        "    classes = ['left', 'right', 'up']\n"
        "    def __len__(self):\n        return 8\n"
        "    def __getitem__(self, i):\n"
        "        return {'input_ids': torch.arange(5) + i, 'labels': torch.tensor(i % 3)}\n"
        "def both():\n    return Words(), Words()\n"
    )
    sources = open_(bert, f"{tmp_path}/data.py:both", kind="text-classification")
    assert sources.labels == ("left", "right", "up")
    assert sources.model(**batch_of(sources)).logits.shape == (4, 3)
    assert len(sources.held_out) == 8


def test_model_from_code_on_images(tmp_path: Path, open_: Open) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 3))\n"
    )
    sources = open_(f"{tmp_path}/net.py:build", files.images(tmp_path / "pictures", each=4))
    inputs, _ = batch_of(sources)
    assert inputs.shape == (4, 3, 224, 224)
    assert sources.model(inputs).shape == (4, 3)


class _StandIn(nn.Module):
    """What timm's models have that is looked at."""

    default_cfg = {"classifier": "fc", "input_size": (3, 8, 8)}

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Flatten(), nn.Linear(192, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of timm's shape: timm itself needs torchvision."""
    package, data = types.ModuleType("timm"), types.ModuleType("timm.data")
    package.__spec__ = types.SimpleNamespace(name="timm")  # type: ignore[assignment]
    package.is_model = lambda name: name == "tinynet"
    package.list_models = lambda: ["tinynet", "resnet50"]
    package.create_model = lambda name, pretrained, num_classes=1000: _StandIn(num_classes)
    data.resolve_model_data_config = lambda model: model.default_cfg

    def create_transform(*, input_size: tuple[int, ...], is_training: bool, **_: object) -> Any:
        assert not is_training
        return lambda image: torch.full(input_size, float(image.getpixel((0, 0))[0]))

    data.create_transform = create_transform
    monkeypatch.setitem(sys.modules, "timm", package)
    monkeypatch.setitem(sys.modules, "timm.data", data)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["timm:tinynet", "tinynet"])
def test_timm(tmp_path: Path, open_: Open, name: str) -> None:
    sources = open_(name, files.images(tmp_path / "pictures", each=4))
    assert sources.head == ("fc",)
    assert sources.new == ("fc.weight", "fc.bias")
    inputs, targets = batch_of(sources)
    assert sources.model(inputs).shape == (4, 3)
    assert targets.tolist() == [0, 0, 0, 1]


@pytest.mark.usefixtures("timm")
def test_timm_alone_has_its_own_head() -> None:
    assert open_model("timm:tinynet").fc.out_features == 1000


def test_a_model_alone_is_as_it_was_saved(bert: Path, gpt2: Path) -> None:
    assert type(open_model(str(bert))).__name__ == "BertForMaskedLM"
    assert type(open_model(str(gpt2))).__name__ == "GPT2LMHeadModel"
    assert type(open_model("torch.nn:Identity")) is nn.Identity


@pytest.mark.usefixtures("timm")
def test_timm_without_that_model(tmp_path: Path, open_: Open) -> None:
    with pytest.raises(ModelSourceError, match=r"no model 'resnet51'\. Nearest names: 'resnet50'"):
        open_("timm:resnet51", tmp_path)


def test_timm_that_is_not_installed(tmp_path: Path, open_: Open) -> None:
    with pytest.raises(ConfigError, match=r"needs timm, which is not installed: pip install timm"):
        open_("timm:resnet50", tmp_path)


def test_a_hub_model_in_the_cache_needs_no_network(
    tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    stored = tmp_path / "hub" / "models--somebody--small"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    snapshot = files.bert(stored / "snapshots" / ("0" * 40))
    sources = open_("somebody/small", files.reviews(tmp_path / "a.csv"))
    assert sources.base == snapshot


@pytest.mark.parametrize(
    "offers", [["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]]
)
def test_of_the_hub_only_what_is_needed_is_fetched(
    tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch, offers: list[str]
) -> None:
    import huggingface_hub

    here = files.bert(tmp_path / "model")
    names = ["config.json", "tokenizer.json", "run.py", "onnx/model.safetensors", *offers]
    asked: list[list[str]] = []

    def fetch(name: str, *, local_files_only: bool = False, allow_patterns: Any = None) -> str:
        if local_files_only:
            raise FileNotFoundError(name)
        asked.append(allow_patterns)
        return str(here)

    info = types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=n) for n in names])
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, timeout: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    said: list[str] = []
    open_("somebody/small", files.reviews(tmp_path / "a.csv"), note=said.append)
    assert asked == [["config.json", "tokenizer.json", offers[0]]]
    assert said == ["fetching somebody/small from the Hugging Face hub"]
