"""Peak memory with and without ``evict``, each measured in a process of its own.

Counted is anonymous memory (``RssAnon`` of Linux), sampled every millisecond while two epochs
train: what a process holds that the system can't take back. What is mapped from a file, such as an
evicted tensor or a record in a folder, is not in it; it is told beside.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _replay_jobs import BATCH, Scale
from _report import table, verdict

from frostline.units import format_bytes

STATUS = Path("/proc/self/status")
WAYS = ("by hand", "replay", "replay, evict")
BATCHES = 4


def memory(scale: Scale) -> None:
    """Peak memory with ``evict``, against the formula."""
    print("## Memory\n")
    if not STATUS.exists():
        print("Left out: it is read from /proc, which this system does not have.\n")
        return
    rows = []
    for way in WAYS:
        found = measured(way, width=scale.width, layers=12, threads=scale.threads)
        every, trained, activations = (found[k] for k in ("all", "trained", "activations"))
        evicted = way == WAYS[2]
        formula = (16 * trained if evicted else 4 * every + 12 * trained) + activations
        ratio = found["peak"] / formula
        # Less than the formula is no failure: gradients are gone while activations are greatest.
        target = f"at most 1.10: {verdict(ratio, 1.10)}" if evicted else ""
        rows.append(
            [
                way,
                "16(1-q)P + A" if evicted else "4P + 12(1-q)P + A",
                *(format_bytes(n) for n in (formula, found["peak"], found["at_rest"])),
                f"{ratio:.2f}",
                target,
                format_bytes(max(0, found["mapped"])),
            ]
        )
    print(
        f"A ViT of 12 layers, width {scale.width}, P = {every:,} parameters, of which the last two"
        f" blocks, norm and head train, (1-q)P = {trained:,}; AdamW, batch {BATCH};"
        f" A = {format_bytes(activations)} of activations that the live part saves. Each way in a"
        " process of its own, with its records in a folder: anonymous memory over what was there"
        " before the model was made, in the epochs after recording, and malloc told to give back"
        " what is freed. 'Mapped' is what lies in files besides, and the system can drop.\n"
    )
    columns = ["way", "formula", "bytes", "peak", "between epochs", "peak / formula"]
    table([*columns, "target", "mapped"], rows)


def measured(way: str, *, width: int, layers: int, threads: int) -> dict[str, Any]:
    """Peak and parts of it, in bytes, for one way in a new process."""
    wanted = {"way": way, "width": width, "layers": layers, "threads": threads}
    # Freed tensors go back to the system at once: what is held is what is counted, on all sides.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(wanted)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(way: str, *, width: int, layers: int, threads: int) -> dict[str, Any]:
    """The same in this process, which should have done nothing before."""
    import torch
    from _replay_jobs import images, vit, vit_last_two
    from _replay_sides import Side, by_hand, replayed

    from frostline.measure import saved_activations

    torch.set_num_threads(threads)

    def side_of(wide: int, deep: int, folder: str) -> tuple[Side, dict[str, int]]:
        setting = vit_last_two(layers=deep)
        model = vit(width=wide, layers=deep, heads=wide // 64)
        sizes = {
            "all": sum(p.numel() for p in model.parameters()),
            "trained": sum(
                p.numel() for name in setting.trains for p in model.get_submodule(name).parameters()
            ),
        }
        options = {"store": folder, "evict": way == WAYS[2], "inputs": "skip"}
        make = by_hand if way == WAYS[0] else replayed
        return make(model, setting, data, **({} if way == WAYS[0] else options)), sizes

    data = images(BATCHES * BATCH)
    with tempfile.TemporaryDirectory() as folder:
        # What libraries load and allocate on first use is there before the count begins.
        warm, _ = side_of(64, 4, folder)
        for epoch in range(3):
            warm.epoch(epoch)
        del warm
        _settle()
        before = _memory()
        side, sizes = side_of(width, layers, folder)
        for epoch in range(3):
            side.epoch(epoch)
        _settle()
        at_rest = _memory()
        with _peak() as peak:
            for epoch in range(3, 5):
                side.epoch(epoch)
    # The live part alone, for the formula's A.
    torch.manual_seed(0)
    setting = vit_last_two(layers=4)
    live: Any = vit(width=width, layers=4, heads=width // 64)
    live.requires_grad_(False)
    for name in setting.trains:
        live.get_submodule(name).requires_grad_(True)
    tokens = setting.features(live, data.tensors[0][:BATCH]).detach()
    saved = saved_activations(live, lambda: setting.suffix(live, tokens).sum())
    return {
        "way": way,
        **sizes,
        "activations": saved.activation_bytes,
        "peak": peak["RssAnon"] - before["RssAnon"],
        "at_rest": at_rest["RssAnon"] - before["RssAnon"],
        "mapped": peak["RssFile"] - before["RssFile"],
    }


@contextmanager
def _peak() -> Iterator[dict[str, int]]:
    """The greatest values seen while this is open."""
    highest = _memory()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name, value in _memory().items():
                highest[name] = max(highest[name], value)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        done.set()
        watcher.join()


def _memory() -> dict[str, int]:
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return {
        name[:-1]: int(rest[0]) * 1024 for name, *rest in lines if name in ("RssAnon:", "RssFile:")
    }


def _settle() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
