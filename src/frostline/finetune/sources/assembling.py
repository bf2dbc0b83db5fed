"""The last step of every opening: one record of model, samples and what is known of both."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from frostline.finetune.sources.base import Kind, Sources
from frostline.finetune.sources.digests import digest_of
from frostline.finetune.sources.tasks import Samples


def assemble(
    kind: Kind,
    model: nn.Module,
    samples: Samples,
    *,
    head: tuple[str, ...] = (),
    new: tuple[str, ...] = (),
    base: Path | None = None,
    notes: tuple[str, ...] = (),
    digest: str,
) -> Sources:
    """The sources of a model and its samples.

    Args:
        kind: what the model is trained to do.
        model: the model.
        samples: the data as it takes them.
        head: see :class:`Sources`.
        new: see :class:`Sources`.
        base: see :class:`Sources`.
        notes: what the user should know beside the samples' own notes.
        digest: of the data's content; "" where the samples' recipe has it.
    """
    return Sources(
        kind=kind,
        model=model,
        train=samples.train,
        held_out=samples.held_out,
        collate=samples.collate,
        labels=samples.classes.names if samples.classes else (),
        head=head,
        new=new,
        companions=samples.companions,
        base=base,
        notes=(*notes, *samples.notes),
        identity=digest_of(kind, digest, *samples.recipe),
    )
