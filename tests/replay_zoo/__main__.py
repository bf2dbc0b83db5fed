"""The table of verdicts: ``PYTHONPATH=tests python -m replay_zoo [pattern …] [-v]``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay_zoo import SETTINGS
from replay_zoo.judge import judged, repeated
from replay_zoo.settings import Setting, Verdict

_STYLES = {
    "identical": "green",
    "declined": "yellow",
    "rounding": "cyan",
    "stopped": "blue",
    "WRONG": "bold red",
    "broken": "magenta",
}


def main() -> int:
    """Print one line per setting as its verdict comes, then how many there are of each."""
    arguments = _arguments()
    chosen = [s for s in SETTINGS if _is_meant(s.name, arguments.patterns)]
    if arguments.one:
        chosen = list({s.architecture: s for s in chosen}.values())
    if not chosen:
        Console(stderr=True).print(f"no setting matches {arguments.patterns}")
        return 2
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    unexpected: list[Verdict] = []
    way = repeated if arguments.repeat else judged
    with way([s.name for s in chosen], processes=arguments.jobs) as verdicts:
        for setting in chosen:
            got = verdicts[setting.name].result()
            counts[got.ruling] += 1
            fine = got.ruling in ({"identical"} if arguments.repeat else setting.expects)
            if not fine:
                unexpected.append(got)
            if not (arguments.failures and fine and not got.warned):
                console.print(_line(setting, got, fine, arguments.verbose), soft_wrap=True)
    console.print(_summary(counts, unexpected, time.perf_counter() - began))
    return 1 if unexpected else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m replay_zoo", description=__doc__)
    parser.add_argument("patterns", nargs="*", help="beginnings of names, or regular expressions")
    parser.add_argument("-v", "--verbose", action="store_true", help="kept calls and what is nasty")
    parser.add_argument("-f", "--failures", action="store_true", help="only what is not expected")
    parser.add_argument("-1", "--one", action="store_true", help="one setting per architecture")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--repeat", action="store_true", help="no replay: are two plain runs the same?"
    )
    return parser.parse_args()


def _is_meant(name: str, patterns: list[str]) -> bool:
    return not patterns or any(re.match(pattern, name) for pattern in patterns)


def _line(setting: Setting, got: Verdict, fine: bool, verbose: bool) -> Text:
    recorded, replayed, plain, compared = got.passes
    line = Text()
    line.append(f"{got.name:<32}")
    line.append(f"{got.ruling:<10}", _STYLES[got.ruling])
    if any(got.passes):
        line.append(f"rec {recorded:<3}rep {replayed:<3}plain {plain:<3}cmp {compared:<3}", "dim")
        line.append(f"{got.faster:5.1f}×{got.seconds:5.1f} s  ", "dim")
    line.append(got.why)
    if not fine and got.ruling not in ("WRONG", "broken"):
        line.append(f"  expected: {' or '.join(sorted(setting.expects))}", "bold red")
    for warning in got.warned:
        line.append(f"\n    warns: {warning}", "red")
    if verbose:
        if setting.nasty:
            line.append(f"\n    nasty: {setting.nasty}")
        line.append(f"\n    kept: {got.kept or 'nothing'}; skipped {got.skipped:.0%}", "dim")
        for refusal in got.refused:
            line.append(f"\n    made every time: {refusal}", "dim")
    return line


def _summary(counts: Counter[str], unexpected: list[Verdict], seconds: float) -> Table:
    table = Table(title=f"{sum(counts.values())} settings in {seconds:.0f} s", title_justify="left")
    for ruling, style in _STYLES.items():
        table.add_column(ruling, style=style, justify="right")
    table.add_column("unexpected", justify="right")
    table.add_row(*(str(counts[ruling]) for ruling in _STYLES), str(len(unexpected)))
    return table


if __name__ == "__main__":
    sys.exit(main())
