"""A writer that is killed at a random moment leaves of each record all or nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
from storing import KEY, digest, fill, fork, found

from frostline.replay import folder_shelf
from frostline.replay.folder_disk import Pace
from frostline.replay.folder_store import FolderStore

KILLS = 200
SIZE = 3001


@pytest.mark.timeout(200)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_two_hundred_kills_leave_nothing_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "due", lambda self: True)
    monkeypatch.setattr(folder_shelf, "_FLUSH_BYTES", 40_000)
    chance = random.Random(4)
    reader = FolderStore(tmp_path)
    kept = []
    for kill in range(KILLS):
        ready, started = os.pipe()

        def write(kill=kill, started=started):
            shelf = FolderStore(tmp_path).shelf(KEY, SIZE)
            os.write(started, b"!")
            for n in range(0, 10**9, 3):
                fill(shelf, [(kill, n), (kill, n + 1), (kill, n + 2)])

        child = fork(write)
        os.close(started)
        assert os.read(ready, 1) == b"!"
        os.close(ready)
        time.sleep(chance.uniform(0, 0.012))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        # One reader stays open all the while, as another rank would.
        kept.append(found(reader.shelf(KEY, SIZE), [digest((kill, n)) for n in range(2000)]))
    entries = [entry for entries in kept for entry in entries]
    assert found(FolderStore(tmp_path).shelf(KEY, SIZE), entries) == entries
    # The kills struck while it was written: most writers had begun, and got to different places.
    assert len({len(entries) for entries in kept}) > 5
    assert sum(map(bool, kept)) > KILLS // 2
    shutil.rmtree(tmp_path)
