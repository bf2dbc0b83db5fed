from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import finetune_files as files
import pytest

from frostline.errors import ConfigError, FrostlineError, ModelSourceError
from frostline.finetune.sources.base import Sources

Open = Callable[..., Sources]


def lines(file: Path, *rows: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows) + "\n")
    return file


def labelled(*labels: object) -> list[dict[str, object]]:
    return [{"text": f"a film {place}", "label": label} for place, label in enumerate(labels)]


# name: how the data are made in the test's folder, options, what the message must say.
TEXT_CASES: dict[str, tuple[Callable[[Path], Path], dict[str, object], str]] = {
    "text column that is not there": (
        lambda at: files.reviews(at / "a.csv"),
        {"columns": {"text": "txt"}},
        r"a\.csv' has no column 'txt' for the text\. Nearest names: 'text'",
    ),
    "role that is none": (
        lambda at: files.reviews(at / "a.csv"),
        {"columns": {"texts": "text"}},
        r"columns: there is no 'texts'\. Nearest names: 'text'",
    ),
    "no column that could be a text": (
        lambda at: files.table(at / "a.csv", [{"x": 1, "y": 2}] * 4),
        {"kind": "text-classification"},
        r"no column that is known to be the text \(its columns are x, y\): say which, as columns",
    ),
    "neither model nor data tell the task": (
        lambda at: files.table(at / "a.csv", [{"x": 1, "y": 2}] * 4),
        {},
        r"\(columns x, y\) do not tell what is to be learned: give task, one of image-class",
    ),
    "a single class": (
        lambda at: files.table(at / "a.csv", labelled("good", "good", "good")),
        {},
        r"has a single class, 'good': there is nothing to tell apart",
    ),
    "a class with one sample": (
        lambda at: files.table(at / "a.csv", labelled("good", "bad", "good", "good")),
        {},
        r"one sample only of class 'bad': .*a folder or file called validation",
    ),
    "samples without a label": (
        lambda at: files.table(at / "a.jsonl", labelled("good", None, "bad", "")),
        {},
        r"2 of 4 samples have no label, the first is number 2: label them, or remove them",
    ),
    "a class that is held out alone": (
        lambda at: files.table(at / "d" / "train.csv", labelled("a", "b", "a", "b")).parent
        if files.table(at / "d" / "val.csv", labelled("a", "c"))
        else at,
        {},
        r"class 'c' is among the held-out samples but not among those to train on",
    ),
    "a text that is none": (
        lambda at: files.table(at / "a.jsonl", [{"text": None, "label": 1}, *labelled(1, 2, 2)]),
        {},
        r"row 1: column 'text' should be a text, got nothing: mend or remove the row",
    ),
    "a broken line of JSON": (
        lambda at: lines(at / "a.jsonl", '{"text": "a", "label": "x"}', "", '{"text": "b", "label'),
        {},
        r"a\.jsonl, line 3: .*; expected one JSON object a line",
    ),
    "a line of JSON that is no object": (
        lambda at: lines(at / "a.jsonl", '{"text": "a"}', '["b"]'),
        {},
        r"a\.jsonl, line 2: expected a JSON object, got \[\"b\"\]",
    ),
    "lines of JSON of other types": (
        lambda at: lines(at / "a.jsonl", '{"text": "a"}', '{"text": 5}'),
        {},
        r"a\.jsonl is damaged: .*must hold the same fields with values of the same type",
    ),
    "a row of CSV with too many fields": (
        lambda at: lines(at / "a.csv", "text,label", "a,x", "b, and c,y"),
        {},
        r"a\.csv is damaged: .*Row #3.*Expected 2 columns, got 3.* must be in quotes",
    ),
    "columns of one name": (
        lambda at: lines(at / "a.csv", "text,text", "a,b"),
        {},
        r"a\.csv, line 1: expected the names of the columns, each different, got 'text', 'text'",
    ),
    "CSV without rows": (
        lambda at: lines(at / "a.csv", "text,label"),
        {},
        r"a\.csv has no rows: there is nothing to train on",
    ),
    "Parquet that is none": (
        lambda at: lines(at / "a.parquet", "text"),
        {},
        r"a\.parquet is no Parquet file, or a damaged one",
    ),
    "text that is not UTF-8": (
        lambda at: (at / "a.txt").write_bytes(b"caf\xe9 au lait") and at / "a.txt",
        {},
        r"a\.txt is not UTF-8 text \(byte 3\): save it as UTF-8",
    ),
    "files of several kinds": (
        lambda at: files.reviews(at / "d" / "a.csv").parent
        if files.reviews(at / "d" / "b.jsonl")
        else at,
        {},
        r"has files of several kinds \(\.csv, json\): give one of them",
    ),
    "files of other columns": (
        lambda at: files.reviews(at / "d" / "a.csv").parent
        if lines(at / "d" / "b.csv", "text,stars", "a,1")
        else at,
        {},
        r"b\.csv has the columns text, stars, but .*a\.csv has text, label: give files of the same",
    ),
    "a file of another kind": (
        lambda at: lines(at / "a.xlsx", "x"),
        {},
        r"\.xlsx files are not read; expected one of \.csv, ",
    ),
    "no such file": (
        lambda at: at / "b.csv",
        {},
        r"there is no such file or folder",
    ),
    "tags of another number": (
        lambda at: files.table(at / "a.jsonl", [{"tokens": ["a", "b"], "tags": ["x", "y"]}] * 3
                               + [{"tokens": ["a"], "tags": ["x", "y"]}]),
        {},
        r"row 4: 1 words but 2 tags: each word needs its tag",
    ),
    "words that are no list": (
        lambda at: files.table(at / "a.csv", [{"tokens": "a b", "tags": "x y"}] * 3),
        {},
        r"row 1: column 'tags' should be a list with an entry for each word, got str: JSON lines",
    ),
    "more tokens than the model has positions for": (
        lambda at: files.reviews(at / "a.csv"),
        {"max_length": 65},
        r"max_length 65 is more than the 64 positions of the model: give at most 64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_CASES)
def test_text_data(bert: Path, tmp_path: Path, open_: Open, name: str) -> None:
    make, options, message = TEXT_CASES[name]
    with pytest.raises(ConfigError, match=message):
        open_(bert, make(tmp_path), **options)


def test_labels_that_the_model_does_not_know(tmp_path: Path, open_: Open) -> None:
    model = files.bert(tmp_path / "model", labels=("good", "bad", "odd"))
    data = files.table(tmp_path / "a.csv", labelled(*("good", "bad", "goood") * 2))
    message = r"labels that the model does not know: 'goood'\. Nearest names: 'good'.*the other 2\."
    with pytest.raises(ConfigError, match=message):
        open_(model, data)


def test_too_little_text(gpt2: Path, tmp_path: Path, open_: Open) -> None:
    message = r"has \d+ tokens, too few for 2 blocks of 64: give more text, or a smaller max_length"
    with pytest.raises(ConfigError, match=message):
        open_(gpt2, lines(tmp_path / "a.txt", "a short text"))


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("causal-lm", "bert", r"\(bert\) has no head for causal-lm; it can do text-class"),
        (
            "text-classification",
            "vit",
            r"\(vit\) has no head for text-classification; it can do im",
        ),
    ],
)
def test_model_without_a_head_for_the_task(
    request: pytest.FixtureRequest, tmp_path: Path, open_: Open, kind: str, model: str, message: str
) -> None:
    with pytest.raises(ModelSourceError, match=message):
        open_(request.getfixturevalue(model), files.reviews(tmp_path / "a.csv"), kind=kind)


def break_images(folder: Path, count: int) -> None:
    for place, path in enumerate(sorted(folder.rglob("*.*"))[:count]):
        content = path.read_bytes()
        path.write_bytes([b"", b"no image", content[: len(content) // 2]][place % 3])


def test_broken_images_are_listed(vit: Path, tmp_path: Path, open_: Open) -> None:
    data = files.images(tmp_path / "pictures", each=6)
    break_images(data, 3)
    with pytest.raises(ConfigError) as caught:
        open_(vit, data)
    said = str(caught.value)
    assert said.startswith(
        f"3 of 18 images in {data} are broken: blue/0.png (empty), blue/1.jpg (no image),"
        " blue/2.png ("
    )
    assert said.endswith("Replace or remove them, or leave them out by --broken skip")


def test_broken_images_are_skipped_if_asked(vit: Path, tmp_path: Path, open_: Open) -> None:
    data = files.images(tmp_path / "pictures", each=6)
    break_images(data, 3)
    sources = open_(vit, data, broken="skip")
    assert len(sources.train) + len(sources.held_out) == 15
    assert any(line.startswith("left out: 3 of 18 images") for line in sources.notes)


def test_of_many_broken_images_ten_are_named(vit: Path, tmp_path: Path, open_: Open) -> None:
    data = files.images(tmp_path / "pictures", each=6)
    break_images(data, 14)
    with pytest.raises(ConfigError, match=r"14 of 18 .* and 4 more\. Replace") as caught:
        open_(vit, data)
    assert len(re.findall(r"\d\.(png|jpg)", str(caught.value))) == 10


def test_an_image_that_breaks_later_is_seen(vit: Path, tmp_path: Path, open_: Open) -> None:
    data = files.images(tmp_path / "pictures", each=6)
    open_(vit, data)
    image = data / "blue" / "0.png"
    image.write_bytes(b"x" * image.stat().st_size)  # of the same size, only changed later
    with pytest.raises(ConfigError, match=r"1 of 18 images .* is broken: blue/0\.png \(no image\)"):
        open_(vit, data)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda at: at.mkdir(), r"pictures has no images: expected a folder for each class"),
    "no classes": (
        lambda at: [path.rename(at / f"{path.parent.name}{path.name}")
                    for path in sorted(files.images(at).rglob("*.*"))],
        r"pictures has images, but no folders for their classes",
    ),
    "loose images": (
        lambda at: (files.images(at) / "red" / "0.png").rename(at / "0.png"),
        r"pictures has 1 image outside of the classes' folders, such as 0\.png",
    ),
    "a class in validation alone": (
        lambda at: (files.images(at / "train", classes=("red", "blue")),
                    files.images(at / "val", classes=("red", "green"))),
        r"val has the classes green, which .*train does not have \(it has blue, red\)",
    ),
    "all broken": (
        lambda at: break_images(files.images(at), 18),
        r"pictures has no image that is whole",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_image_folders(vit: Path, tmp_path: Path, open_: Open, name: str) -> None:
    make, message = FOLDERS[name]
    make(tmp_path / "pictures")
    with pytest.raises(ConfigError, match=message):
        open_(vit, tmp_path / "pictures", broken="skip")


def without(model: Path, *names: str) -> Path:
    for name in names:
        (model / name).unlink()
    return model


def test_model_folders(tmp_path: Path, open_: Open) -> None:
    data = files.reviews(tmp_path / "a.csv")
    cases: dict[str, tuple[tuple[str, ...], str]] = {
        "weights": (("model.safetensors",), r"the model in .* does not load: .*no file named"),
        "tokenizer": (("tokenizer.json", "tokenizer_config.json"), r"has no tokenizer"),
        "config": (("config.json",), r"has no config\.json: expected a folder as save_pretrained"),
    }
    for name, (removed, message) in cases.items():
        model = without(files.bert(tmp_path / name), *removed)
        with pytest.raises(ModelSourceError, match=message):
            open_(model, data)


def test_model_whose_code_would_have_to_be_run(tmp_path: Path, open_: Open) -> None:
    model = files.bert(tmp_path / "model")
    told = json.loads((model / "config.json").read_text())
    told |= {"model_type": "nobodys", "auto_map": {"AutoConfig": "own.Config"}}
    (model / "config.json").write_text(json.dumps(told))
    (model / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelSourceError, match=r"code of their own are not loaded"):
        open_(model, files.reviews(tmp_path / "a.csv"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is reached, whatever the machine that the test runs on reaches."""
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub, "dataset_info", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("which", ["model", "data set"])
def test_no_network_is_said_at_once(bert: Path, tmp_path: Path, open_: Open, which: str) -> None:
    started = time.monotonic()
    name = "somebody/something-never-cached"
    model, data = (name, tmp_path) if which == "model" else (bert, name)
    with pytest.raises(FrostlineError) as caught:
        open_(model, data)
    assert re.match(
        rf"no network, and {which} '{name}' is not in the cache \(.+\): give a local folder, or"
        r" fetch it where there is a network and set HF_HUB_OFFLINE=1 and HF_HOME",
        str(caught.value),
    )
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", r"there is no such folder; give a folder, a name on the Hugging Face hub"),
        ("a/b/c", r"there is no such folder"),
        ("nowhere.py:build", r"there is no file nowhere\.py"),
    ],
)
def test_no_such_model(tmp_path: Path, open_: Open, model: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        open_(model, f"{lines(tmp_path / 'data.py', 'def build(): return [1, 2]')}:build")


def test_a_missing_extra(
    bert: Path, tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = (
        r"reading a table needs datasets, which is not installed: pip install 'frostline\[hf\]'"
    )
    with pytest.raises(ConfigError, match=message):
        open_(bert, files.reviews(tmp_path / "a.csv"))


CODE = {
    "raises": ("def build(): raise KeyError('x')", r"raised KeyError: 'x' \(.*data\.py, line 1\)"),
    "no data set": ("def build(): return 5", r"should return a data set .*, got int"),
    "nothing": ("def build(): return []", r"gave an empty list"),
    "other name": ("def built(): return [1]", r"has no 'build'\. Nearest names: 'built'"),
}


@pytest.mark.parametrize("name", CODE)
def test_data_from_code(bert: Path, tmp_path: Path, open_: Open, name: str) -> None:
    code, message = CODE[name]
    data = f"{lines(tmp_path / 'data.py', code)}:build"
    with pytest.raises(ConfigError, match=message):
        open_(bert, data, kind="text-classification")


@pytest.mark.parametrize(
    ("model", "data", "meant"),
    [
        pytest.param("tales/vit", "tales/photo", "tales/photos", id="folder of data"),
        pytest.param("tales/vit", "tales/review.csv", "tales/reviews.csv", id="file"),
        pytest.param("./tales/vitt", "tales/photos", "tales/vit", id="folder of a model"),
        pytest.param("./tutorail", "tales/photos", "tutorial", id="built-in"),
    ],
)
def test_a_misspelt_name_is_suggested_from_what_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_: Open, model: str, data: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files.vit(tmp_path / "tales" / "vit")
    files.images(tmp_path / "tales" / "photos", each=1)
    files.reviews(tmp_path / "tales" / "reviews.csv")
    with pytest.raises(FrostlineError, match=f"^did you mean '{meant}'\\? Otherwise: "):
        open_(model, data)


def test_weights_that_may_not_be_read(
    vit: Path, tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = files.images(tmp_path / "photos", each=2)
    # The tests may run as root, who reads everything.
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith(".safetensors"))
    with pytest.raises(ModelSourceError, match=r"model\.safetensors can't be read: permission den"):
        open_(vit, pictures)
