"""A pretrained model of transformers on data of any form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from frostline.errors import ConfigError
from frostline.finetune.sources.assembling import assemble
from frostline.finetune.sources.base import Kind, Sources
from frostline.finetune.sources.blocks import causal_lm
from frostline.finetune.sources.code import is_code, load_data
from frostline.finetune.sources.digests import digest_of
from frostline.finetune.sources.image_tasks import Processed, image_classification
from frostline.finetune.sources.kinds import check_can, choose_kind, kind_of_architecture
from frostline.finetune.sources.pretrained import (
    known_classes,
    load_config,
    load_image_processor,
    load_pretrained,
    load_tokenizer,
)
from frostline.finetune.sources.raw import Raw
from frostline.finetune.sources.reading import read_data
from frostline.finetune.sources.tasks import Asked, Samples
from frostline.finetune.sources.text_tasks import text_classification, token_classification


def open_pretrained(name: str, folder: Path, data: str, kind: Kind | None, asked: Asked) -> Sources:
    """Load a model of transformers and the data.

    Args:
        name: what the user called the model, for messages.
        folder: where it is.
        data: what the user called the data.
        kind: what is to be learned; None for what the model was made for, or the data suit.
        asked: what the user said about the data.

    Raises:
        FrostlineError: as :func:`frostline.finetune.sources.opening.open_sources`.
    """
    config = load_config(folder)
    if is_code(data):
        return _pretrained_on_code(name, folder, config, data, kind, asked)
    if kind is not None and kind != "custom":
        check_can(config, kind, name)
    raw = read_data(data, asked)
    kind, kind_notes = choose_kind(kind, config, raw, asked.columns, name)
    samples = _samples_for(kind, folder, config, raw, asked)
    loaded = load_pretrained(folder, config, kind, samples.classes, seed=asked.seed)
    _set_padding(loaded.model, samples)
    return assemble(
        kind,
        loaded.model,
        samples,
        head=loaded.head,
        new=loaded.new,
        base=folder,
        notes=(*raw.notes, *kind_notes, *loaded.notes),
        digest=raw.digest,
    )


def _samples_for(kind: Kind, folder: Path, config: Any, raw: Raw, asked: Asked) -> Samples:
    """The data as the model in ``folder`` takes them."""
    known = known_classes(config, kind)
    if kind == "image-classification":
        processor = load_image_processor(folder)
        return image_classification(
            raw,
            asked,
            transform=Processed(processor),
            recipe=processor.to_json_string(),
            known=known,
            companions=(processor,),
            as_dict=True,
        )
    tokenizer = load_tokenizer(folder)
    if kind == "causal-lm":
        samples = causal_lm(raw, asked, tokenizer=tokenizer, config=config)
    else:
        prepare = text_classification if kind == "text-classification" else token_classification
        samples = prepare(raw, asked, tokenizer=tokenizer, config=config, known=known)
    return replace(samples, recipe=(*samples.recipe, _digest_of_tokenizer(tokenizer)))


def _pretrained_on_code(
    name: str, folder: Path, config: Any, data: str, kind: Kind | None, asked: Asked
) -> Sources:
    """A pretrained model on samples that are dicts of tensors, as its ``forward`` takes them."""
    kind = kind or kind_of_architecture(config.architectures)
    if kind is None or kind == "custom":
        raise ConfigError(
            f"model {name!r} does not tell what is to be learned, and data from code don't either:"
            " give task"
        )
    check_can(config, kind, name)
    samples = load_data(data, asked)
    known = known_classes(config, kind)
    if samples.classes is None and kind != "causal-lm" and known is None:
        raise ConfigError(
            f"data {data!r}: model {name!r} needs a new head, for how many classes? Give the data"
            " set a list 'classes' with their names"
        )
    loaded = load_pretrained(folder, config, kind, samples.classes, seed=asked.seed)
    if samples.classes is None and known is not None:
        labels = tuple(known[number] for number in sorted(known))
    else:
        labels = samples.classes.names if samples.classes else ()
    sources = assemble(
        kind,
        loaded.model,
        samples,
        head=loaded.head,
        new=loaded.new,
        base=folder,
        notes=loaded.notes,
        digest="",
    )
    return replace(sources, labels=labels)


def _set_padding(model: Any, samples: Samples) -> None:
    """Tell the model which token is padding: it looks for the last one that is not."""
    for companion in samples.companions:
        token = getattr(companion, "pad_token_id", None)
        if token is not None and getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = token


def _digest_of_tokenizer(tokenizer: Any) -> str:
    if tokenizer.is_fast:
        return digest_of(tokenizer.backend_tokenizer.to_str(), repr(tokenizer.special_tokens_map))
    return digest_of(sorted(tokenizer.get_vocab().items()), repr(tokenizer.special_tokens_map))
