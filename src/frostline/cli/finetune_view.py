"""What a person sees of a fine-tuning job: its progress, then its result."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from frostline.cli.timeline_view import timeline_chart
from frostline.finetune.digits import DIGITS
from frostline.finetune.metrics import EpochMetrics
from frostline.finetune.networks import PRETRAINED
from frostline.finetune.result import Measure, ReplayReport, Result, Savings
from frostline.units import format_bytes, format_count, format_number_of, format_seconds


class Display:
    """Shows a job's progress: a bar on a terminal, elsewhere a line an epoch.

    A :class:`frostline.finetune.watcher.Watcher`, and a context manager that clears the bar.

    Args:
        console: where it is shown.
        quiet: show nothing: of several processes only one speaks.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, visible=False, figures="")
        self._epochs = 0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._quiet:
            return
        # As Text: a path may hold what rich takes for markup. soft_wrap: so that a command in
        # it can be copied.
        self._console.print(Text(text), soft_wrap=True)

    def begin(self, *, epochs: int, done: int, steps: int) -> None:
        """Show the bar."""
        self._epochs = epochs
        self._bar.update(
            self._task,
            description=f"epoch {min(done + 1, epochs)}/{epochs}",
            total=epochs * steps,
            completed=done * steps,
            visible=True,
        )

    def step(self, loss: float) -> None:
        """Move the bar."""
        self._bar.advance(self._task)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Say how the epoch went."""
        figures = f"loss {metrics.loss:.3f}  accuracy {metrics.accuracy:.1%}"
        if metrics.f1 is not None:
            figures += f"  F1 {metrics.f1:.1%}"
        if self._console.is_terminal:
            coming = min(metrics.epoch + 1, self._epochs)
            description = f"epoch {coming}/{self._epochs}"
            self._bar.update(self._task, description=description, figures=figures)
        else:
            self.note(f"epoch {metrics.epoch}/{self._epochs}  {figures}")

    def measuring(self) -> None:
        """Say that the end is near."""
        self._bar.update(self._task, description="measuring what freezing saved")


def show(result: Result, console: Console) -> None:
    """Print a result as tables that fit 80 columns."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for measure, gain in _scores(result):
        facts.add_row(measure, gain)
    facts.add_row("proof", _proof(result))
    facts.add_row("trained", _trained(result))
    if result.replay:
        facts.add_row("replay", _replay(result.replay))
    console.print()
    console.print(facts)
    console.print()
    if result.schedule:
        ascii_only = console.options.ascii_only
        chart = timeline_chart(result.schedule, width=console.width, ascii_only=ascii_only)
        console.print(chart, soft_wrap=True)
        console.print()
    if result.saved:
        console.print(_savings(result.saved))
        console.print()
    # Not in a table: a path that is cut by a line break can't be copied.
    for label, text in (("run", str(result.run)), ("next", result.next)):
        console.print(Text.assemble((f"{label:<10}", "bold"), text), soft_wrap=True)


_SAMPLES = {
    "image-classification": "images",
    "text-classification": "texts",
    "token-classification": "texts",
    "causal-lm": "blocks of text",
}
"""What the samples of a task are called."""


def _scores(result: Result) -> list[tuple[str, Text]]:
    """Before and after by the measure that the best epoch was chosen by, and others beside it."""
    if result.followed == "loss":
        low, high = (math.exp(min(x, 99.0)) for x in (result.loss.after, result.loss.before))
        rows = [("perplexity", _gain(f"{high:.4g}", f"{low:.4g}", low < high))]
    elif result.f1 is not None:
        rows = [("F1", _percent_gain(result.f1)), ("accuracy", _percent_gain(result.accuracy))]
    else:
        # Else the gain looks like one over a network that already knew something of the task.
        why = " (the head is new)" if result.model == PRETRAINED else ""
        rows = [("accuracy", _percent_gain(result.accuracy, why))]
    samples = "scans" if result.data == DIGITS else _SAMPLES.get(result.kind, "samples")
    best = f" (kept: {result.best_epoch})" if result.best_epoch != result.epochs else ""
    rows[0][1].append(
        f" on {result.accuracy.held_out} held-out {samples};"
        f" {format_number_of(result.epochs, 'epoch')}{best} in"
        f" {format_seconds(result.train_seconds)}"
    )
    return rows


def _percent_gain(measure: Measure, why: str = "") -> Text:
    return _gain(
        _percent(measure.before) + why, _percent(measure.after), measure.after > measure.before
    )


def _gain(before: str, after: str, is_better: bool) -> Text:
    return Text.assemble(f"{before} → ", (after, "bold green" if is_better else "bold"))


def _proof(result: Result) -> Text:
    proof = result.proof
    count = f"{proof.parameters} parameters, {proof.buffers} buffers"
    if result.schedule and proof.ok and not proof.tensors:
        ever = any(any(row) for row in result.schedule.frozen)
        what = "what thawed had not changed by then" if ever else "nothing was to be proved"
        return Text.assemble(("holds", "bold green"), f": {what}, and nothing is frozen at the end")
    if proof.ok:
        return Text.assemble(
            ("holds", "bold green"),
            f": {proof.tensors} frozen tensors ({count}) are bitwise unchanged; checked in"
            f" {format_seconds(proof.seconds)}",
        )
    return Text.assemble(
        ("FAILED", "bold red"),
        f": {len(proof.changes)} of {proof.tensors} frozen tensors ({count}) changed",
    )


def _trained(result: Result) -> str:
    trained = result.trained
    return (
        f"{format_count(trained.parameters)} of {format_count(trained.of)} parameters"
        f" ({trained.rules})"
    )


def _replay(report: ReplayReport) -> str:
    if report.why_not is not None:
        return f"nothing was replayed: {report.why_not}"
    batches = report.replayed + report.recorded + report.plain
    gain = f"saved about {format_seconds(report.saved_seconds)}"
    if report.saved_seconds < 0:
        gain = (
            f"took about {format_seconds(-report.saved_seconds)} more than it saved, with trials,"
            " recording and checks"
        )
    return (
        f"{gain}; {report.replayed} of {batches} batches left out"
        f" {_percent(report.skipped_share)} of the forward pass; {format_bytes(report.kept_bytes)}"
        f" kept in {report.place}"
    )


def _savings(saved: Savings) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("one step", style="bold", header_style="bold", no_wrap=True)
    for heading in ("frozen", "full training", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, field in (
        ("gradients", "gradient_bytes"),
        ("optimizer state", "optimizer_state_bytes"),
        ("activations kept", "activation_bytes"),
        ("time", "step_seconds"),
    ):
        frozen, full = (float(getattr(side, field)) for side in (saved.frozen, saved.full))
        unit = format_seconds if field == "step_seconds" else format_bytes
        share = f"{1 - frozen / full:.0%}" if full else "-"
        table.add_row(label, unit(frozen), unit(full), share)
    return table


def _percent(share: float) -> str:
    return f"{share:.1%}"
