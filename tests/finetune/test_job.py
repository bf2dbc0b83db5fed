from __future__ import annotations

import pytest
import torch
from jobs import FINISHED, files, history, quick, read
from safetensors.torch import load_file

from frostline.finetune import job
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.pretrain import pretrained_digits_cnn
from frostline.freezing import Plan

pytestmark = pytest.mark.usefixtures("swift")


def test_the_default_job_learns_and_keeps_the_backbone(tmp_path):
    result = job.start(FinetuneConfig(out=tmp_path))
    assert result.accuracy.before < 0.5
    assert result.accuracy.after > 0.9
    assert result.accuracy.held_out == 225
    assert (result.proof.ok, result.proof.parameters, result.proof.buffers) == (True, 9, 9)
    assert files(result.run) == FINISHED
    base = pretrained_digits_cnn(lambda text: None).state_dict()
    tuned = load_file(result.run / "model.safetensors")
    same = {name for name in base if torch.equal(base[name], tuned[name])}
    assert {name.partition(".")[0] for name in same} == {"stem", "block1", "block2"}
    assert len(same) == 18
    assert len(base) == 26


def test_the_run_folder_says_what_was_done(tmp_path):
    config = quick(tmp_path, train=["head"])
    result = job.start(config)
    assert str(Plan.load(result.run / "plan.yaml")) == "freeze: **; train: head"
    assert [line["epoch"] for line in history(result.run)] == [1, 2, 3]
    assert read(result.run, "result.json") == result.to_json()
    assert read(result.run, "status.json") == {
        "state": "finished",
        "epoch": 3,
        "epochs": 3,
        "resumable": False,
        "message": "24 frozen tensors are bitwise unchanged",
        "next": f"frostline inspect {result.run}/model.safetensors",
    }
    assert read(result.run, "frozen.json").keys() == {"parameter", "buffer"}
    assert result.trained.parameters == 128 * 5 + 5


def test_freezing_saves_memory_and_full_training_is_the_model_as_it_came(tmp_path):
    saved = job.start(quick(tmp_path, epochs=1)).saved
    trained, everything = 74_629, 130_533
    assert saved.frozen.gradient_bytes == 4 * trained
    assert saved.full.gradient_bytes == 4 * everything
    # Two moments an element, and a counter of 4 bytes a tensor.
    assert saved.frozen.optimizer_state_bytes == 8 * trained + 4 * 5
    assert saved.full.optimizer_state_bytes == 8 * everything + 4 * 14
    assert saved.frozen.activation_bytes < saved.full.activation_bytes / 4
    assert saved.frozen.step_seconds > 0


def test_the_same_job_twice_gives_the_same_weights_in_two_folders(tmp_path):
    first, second = job.start(quick(tmp_path)), job.start(quick(tmp_path))
    assert first.run != second.run
    weights = [(result.run / "model.safetensors").read_bytes() for result in (first, second)]
    assert weights[0] == weights[1]
    assert history(first.run) == history(second.run)
    other = job.start(quick(tmp_path, seed=1))
    assert (other.run / "model.safetensors").read_bytes() != weights[0]


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path):
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    job.start(quick(tmp_path, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 2


def test_tied_weights_are_written_once_and_buffers_left_out_of_the_state_are_proven(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one = nn.Linear(64, 64)\n"
        "        self.two = nn.Linear(64, 64)\n"
        "        self.two.weight = self.one.weight\n"
        "        self.two.register_buffer('calls', torch.zeros(()), persistent=False)\n"
        "        self.head = nn.Linear(64, 5)\n"
        "    def forward(self, x):\n"
        "        self.two.calls += 1\n"
        "        return self.head(self.two(self.one(x.flatten(1)).relu()))\n"
    )
    result = job.start(quick(tmp_path, model=f"{tmp_path}/nets.py:Net", train=["head"]))
    assert [change.name for change in result.proof.changes] == ["two.calls"]
    stored = load_file(result.run / "model.safetensors")
    assert stored.keys() == {"one.weight", "one.bias", "two.bias", "head.weight", "head.bias"}
