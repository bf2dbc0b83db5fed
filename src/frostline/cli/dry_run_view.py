"""What a person sees of a job that is only looked at."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from frostline.finetune.dry_run import Preview
from frostline.units import format_bytes, format_count, format_number_of, format_seconds

_NAMED = 6


def show_preview(seen: Preview, console: Console) -> None:
    """Print a preview as a table that fits 80 columns."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("task", seen.kind)
    data = f"{seen.train_samples} to train on, {seen.held_out_samples} held out"
    facts.add_row("samples", f"{data}; {format_number_of(seen.steps_per_epoch, 'step')} an epoch")
    facts.add_row("plan", Text(seen.rules))
    if seen.schedule:
        facts.add_row("schedule", f"{seen.schedule}; what follows is how it begins")
    facts.add_row("trains", Text(_trains(seen)))
    facts.add_row("frost line", Text(_line(seen)))
    facts.add_row("memory", _memory(seen))
    facts.add_row("time", _time(seen))
    console.print(facts)
    console.print("\nNothing was trained, and nothing was written.")


def _trains(seen: Preview) -> str:
    names = ", ".join(seen.trains[:_NAMED])
    more = f" and {len(seen.trains) - _NAMED} more" if len(seen.trains) > _NAMED else ""
    return f"{format_count(seen.parameters)} of {format_count(seen.of)} parameters: {names}{more}"


def _line(seen: Preview) -> str:
    if seen.line is None or seen.replay_why_not is not None:
        return f"nothing will be replayed: {seen.replay_why_not}"
    kept = ", ".join(seen.line.kept)
    return (
        f"behind {kept}: {seen.line.skipped_share:.0%} of the forward pass is computed once a"
        f" sample; {format_bytes(seen.replay_bytes)} will be kept"
    )


def _memory(seen: Preview) -> str:
    if seen.need is None:
        return "can't be foretold: a step depends on what is in the batch"
    step = seen.need.step
    return (
        f"{format_bytes(seen.need.total_bytes)}: weights {format_bytes(seen.need.weight_bytes)},"
        f" gradients {format_bytes(step.gradient_bytes)}, optimizer state"
        f" {format_bytes(step.optimizer_state_bytes)}, activations"
        f" {format_bytes(step.activation_bytes)}"
    )


def _time(seen: Preview) -> str:
    text = f"{format_seconds(seen.step_seconds)} a step, {format_seconds(seen.epoch_seconds)} an"
    if seen.replayed_epoch_seconds is None:
        return f"{text} epoch"
    return f"{text} epoch; {format_seconds(seen.replayed_epoch_seconds)} once it is replayed"
