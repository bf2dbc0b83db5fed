"""What importing costs, each time in a fresh process: import frostline, frostline --help.

Targets: at most 50 ms more than import torch; the command's help in under 0.4 s, without torch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from time import perf_counter

from _report import heading, table, verdict

ROUNDS = 9

STAGES = """
import json, time
start = time.perf_counter()
import torch
loaded = time.perf_counter()
import frostline
imported = time.perf_counter()
for name in frostline.__all__:
    getattr(frostline, name)
used = time.perf_counter()
print(json.dumps([loaded - start, imported - loaded, used - imported]))
"""


def import_stages() -> list[float]:
    """Seconds for import torch, import frostline after it, and every public name after that."""
    run = subprocess.run([sys.executable, "-c", STAGES], capture_output=True, text=True, check=True)
    return list(json.loads(run.stdout))


def whole_process(*arguments: str) -> float:
    """Seconds from start to end of a Python process."""
    start = perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return perf_counter() - start


def main() -> None:
    """Print one table; the kinds of process take turns."""
    stages: list[list[float]] = []
    bare: list[float] = []
    help_page: list[float] = []
    for number in range(ROUNDS + 1):
        measured = (
            import_stages(),
            whole_process("-c", ""),
            whole_process("-m", "frostline", "--help"),
        )
        if number:  # the first round fills the file cache
            stages.append(measured[0])
            bare.append(measured[1])
            help_page.append(measured[2])
    torch_s, import_s, used_s = (statistics.median(column) for column in zip(*stages, strict=True))
    help_s = statistics.median(help_page)
    added = import_s + used_s
    heading("Import time", f"Medians of {ROUNDS} fresh processes of each kind, in turns.")
    table(
        ["what", "ms", "target"],
        [
            ["import torch", f"{torch_s * 1e3:.0f}", ""],
            [
                "import frostline, after it",
                f"{import_s * 1e3:.1f}",
                f"at most 50 ms: {verdict(import_s, 0.05)}",
            ],
            [
                "the same, and every public name used",
                f"{added * 1e3:.1f}",
                f"at most 50 ms: {verdict(added, 0.05)}",
            ],
            ["python -c '' (the whole process)", f"{statistics.median(bare) * 1e3:.0f}", ""],
            [
                "frostline --help (the whole process)",
                f"{help_s * 1e3:.0f}",
                f"under 400 ms: {verdict(help_s, 0.4)}",
            ],
        ],
    )


if __name__ == "__main__":
    main()
