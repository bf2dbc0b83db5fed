from __future__ import annotations

from pathlib import Path

import pytest

from frostline.errors import ConfigError
from frostline.finetune.config import FinetuneConfig, load_config


def read(tmp_path: Path, text: str, **flags: object) -> FinetuneConfig:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, flags)


def test_defaults():
    assert load_config() == FinetuneConfig(
        model="digits-cnn",
        data="digits",
        train=(),
        freeze=(),
        plan=None,
        epochs=10,
        lr=1e-3,
        optimizer="AdamW",
        optimizer_options={},
        weight_decay=None,
        batch_size=32,
        seed=0,
        out=Path("runs"),
        replay="auto",
    )


def test_flags_win_over_the_file(tmp_path):
    config = read(tmp_path, "epochs: 3\nlr: 0.1\nseed: 5", epochs=7)
    assert (config.epochs, config.lr, config.seed) == (7, 0.1, 5)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        pytest.param("lr: 1e-3", "lr", 0.001, id="what-yaml-takes-for-text"),
        pytest.param("train: head", "train", ("head",), id="one-selector"),
        pytest.param("freeze: [stem, block1]", "freeze", ("stem", "block1"), id="several"),
        pytest.param("plan: a/plan.yaml", "plan", Path("a/plan.yaml"), id="a-path"),
        pytest.param("replay: on", "replay", "on", id="what-yaml-takes-for-true"),
        pytest.param("replay: off", "replay", "off", id="what-yaml-takes-for-false"),
        pytest.param("replay: some/folder", "replay", "some/folder", id="a-folder"),
        pytest.param("mixed_precision: no", "mixed_precision", "no", id="yamls-no"),
        pytest.param("columns: {text: body}", "columns", {"text": "body"}, id="columns"),
        pytest.param("\ufeffepochs: 2", "epochs", 2, id="byte-order-mark"),
        pytest.param(
            "optimizer_options: {betas: [0.9, 0.95]}",
            "optimizer_options",
            {"betas": [0.9, 0.95]},
            id="options",
        ),
    ],
)
def test_what_a_file_may_say(tmp_path, text, field, value):
    assert getattr(read(tmp_path, text), field) == value


@pytest.mark.parametrize(
    ("flags", "train", "freeze", "plan"),
    [
        pytest.param({"train": ["head"]}, ("head",), (), None, id="train"),
        pytest.param({"freeze": ["stem"]}, (), ("stem",), None, id="freeze"),
        pytest.param({"plan": Path("p.yaml")}, (), (), Path("p.yaml"), id="plan"),
        pytest.param({"epochs": 1}, (), ("block1",), None, id="none"),
    ],
)
def test_a_flag_that_says_what_to_train_replaces_all_of_the_file(
    tmp_path, flags, train, freeze, plan
):
    config = read(tmp_path, "freeze: block1", **flags)
    assert (config.train, config.freeze, config.plan) == (train, freeze, plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "job.yaml is empty", id="empty"),
        pytest.param("# nothing", "job.yaml is empty", id="only-a-comment"),
        pytest.param(
            "a: [", "job.yaml is not YAML .line 1, column 5.: while parsing", id="not-yaml"
        ),
        pytest.param("!!python/name:os.system ''", "job.yaml is not YAML", id="a-tag"),
        pytest.param("- 1", r"expected fields such as 'epochs: 5', got \[1\]", id="a-list"),
        pytest.param("lr: 1\nlr: 2", "lr is given twice, in line 2 again", id="twice"),
        pytest.param("lr: 2024-13-45", "a value that YAML can't read: month", id="a-bad-date"),
        pytest.param(
            "epoch: 3", "job.yaml, line 1: epoch: .* no such field; did you mean epochs", id="near"
        ),
        pytest.param("momentum: 3", "no such field; known are model, data, task", id="unknown"),
        pytest.param("epochs: 0", "epochs: got 0, expected greater than or equal to 1", id="zero"),
        pytest.param("epochs: 2.5", "epochs: got 2.5, expected a valid integer", id="a-fraction"),
        pytest.param("epochs: yes", "epochs: got True, expected a number", id="a-word"),
        pytest.param("lr: fast", "lr: got 'fast', expected a valid number", id="no-number"),
        pytest.param("lr: 0", "lr: got 0, expected greater than 0", id="lr-zero"),
        pytest.param("lr: .inf", "lr: got inf, expected a finite number", id="lr-infinite"),
        pytest.param("lr: .nan", "lr: got nan, expected", id="lr-nan"),
        pytest.param("batch_size: -1", "batch_size: got -1", id="negative"),
        pytest.param("weight_decay: -0.1", "weight_decay: got -0.1", id="negative-decay"),
        pytest.param("seed: -1", "seed: got -1", id="negative-seed"),
        pytest.param("data: ''", "data: got '', expected .* at least 1 char", id="no-data"),
        pytest.param("task: regression", "task: got 'regression', expected 'image-", id="task"),
        pytest.param("held_out: 1", "held_out: got 1, expected less than 1", id="all-held-out"),
        pytest.param("mixed_precision: fp8", "got 'fp8', expected 'no', 'bf16'", id="precision"),
        pytest.param("warmup: 1", "warmup: got 1, expected less than 1", id="warmup"),
        pytest.param("lr_schedule: step", "got 'step', expected 'constant'", id="lr-schedule"),
        pytest.param(
            "epochs: 2\n\ncolumns:\n  text: body\n  label: 3",
            r"job.yaml, line 5: columns: got 3, expected a valid string",
            id="line-of-what-is-inside",
        ),
        pytest.param("lr: 1\n# no\nepochs: 0", "job.yaml, line 3: epochs: got 0", id="line"),
        pytest.param("train: on", "train: got True, expected a selector or a list", id="train-on"),
        pytest.param("train: [3]", r"train: got \[3\], expected a selector", id="train-number"),
        pytest.param("train: a\nfreeze: b", "train and freeze can't go together", id="both"),
        pytest.param("lr: -1\nseed: x", "lr: got -1, .*; .*seed: got 'x'", id="two-faults"),
        pytest.param("optimizer_options: {lr: 1}", "lr is a field of its own", id="lr-option"),
        pytest.param(
            "replay: ''", "replay: got '', expected auto, on, off, memory or a folder", id="replay"
        ),
        pytest.param("replay: 3", "replay: got 3, expected auto, on, off", id="replay-number"),
        pytest.param(
            "optimizer_options: {1: 2}",
            "optimizer_options: got 1, expected a valid string",
            id="key",
        ),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_value_that_unfolds_without_end_is_quoted_briefly(tmp_path):
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"a0: &a0 [x]\n{levels}\nepochs: *a29")
    assert len(str(caught.value)) < 3000


def test_a_fault_in_a_flag_names_the_flag(tmp_path):
    with pytest.raises(ConfigError, match=r"^--batch-size: got 0, expected greater"):
        read(tmp_path, "lr: 0.1", batch_size=0)


def test_a_folder_in_place_of_the_file_is_told_where_it_belongs(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder, where a YAML file .* given by --model"):
        load_config(tmp_path)


def test_a_word_in_place_of_a_number_is_said_once():
    with pytest.raises(ConfigError) as caught:
        load_config(flags={"epochs": "two"})
    assert str(caught.value) == "--epochs: got 'two', expected a valid integer"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(lambda file: None, "No such file", id="missing"),
        pytest.param(lambda file: file.write_bytes(b"\xff\xfe"), "not UTF-8 text", id="binary"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, prepare, message):
    prepare(tmp_path / "job.yaml")
    with pytest.raises(ConfigError, match=f"cannot read the configuration .*job.yaml: .*{message}"):
        load_config(tmp_path / "job.yaml")


def test_a_written_configuration_reads_back_the_same(tmp_path):
    config = FinetuneConfig(
        train=("head", "re:^block3"),
        lr=1e-5,
        optimizer_options={"betas": [0.9, 0.95], "amsgrad": True},
        out=Path("somewhere/else"),
    )
    assert read(tmp_path, config.to_yaml()) == config
