"""Models and data sets of the Hugging Face hub: from the cache if they are there, else fetched.

Without a network it is said at once; nothing waits for retries.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from frostline.errors import ConfigError, FrostlineError, ModelSourceError
from frostline.finetune.sources.base import Note
from frostline.finetune.sources.extras import require

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WAIT_SECONDS = 5.0
# What a model is loaded from; no code, no weights of other frameworks.
_TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")


def is_hub_name(name: str) -> bool:
    """Whether ``name`` could be one on the hub: ``bert-base-uncased`` or ``google/vit-base``.

    >>> is_hub_name("google/vit-base-patch16-224"), is_hub_name("./model"), is_hub_name("a/b/c")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None


def fetch_model(name: str, note: Note) -> Path:
    """The folder with a hub model's configuration, weights, tokenizer and image processor.

    Args:
        name: as on the hub.
        note: is told before a download.

    Raises:
        ModelSourceError: there is no such model, or no network to fetch it.
    """
    hub = require("huggingface_hub", reason=f"model {name!r} of the Hugging Face hub")
    cached = _cached(hub, name)
    if cached is not None:
        return cached
    info = _look_up(hub, name, "model")
    files = [file.rfilename for file in info.siblings]
    weights = [file for file in files if _WEIGHTS.fullmatch(file)]
    if any(file.endswith(".safetensors") for file in weights):
        weights = [file for file in weights if file.endswith(".safetensors")]
    if not weights:
        raise ModelSourceError(
            f"model {name!r} has no weights in safetensors or PyTorch's format: it has"
            f" {', '.join(files[:6])}"
        )
    note(f"fetching {name} from the Hugging Face hub")
    wanted = [file for file in files if "/" not in file and file.endswith(_TEXT_SUFFIXES)]
    try:
        folder = hub.snapshot_download(name, allow_patterns=[*wanted, *weights])
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"model {name!r} could not be fetched: {error}") from error
    return Path(folder)


def fetch_data(name: str, note: Note) -> Any:
    """All splits of a data set of the hub: a ``datasets.DatasetDict``.

    Args:
        name: as on the hub, ``owner/name``; ``owner/name:configuration`` where it has several.
        note: is told before a download.

    Raises:
        ConfigError: there is no such data set or configuration, or no network to fetch it.
    """
    datasets = require("datasets", reason=f"data set {name!r} of the Hugging Face hub")
    hub = require("huggingface_hub", reason=f"data set {name!r} of the Hugging Face hub")
    place, _, configuration = name.partition(":")
    absent: FrostlineError | None = None
    try:
        _look_up(hub, place, "dataset")
        note(f"loading {place} from the Hugging Face hub")
    except ConfigError as error:
        if not isinstance(error.__cause__, _offline_errors(hub)):
            raise
        absent = error
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or absent is not None
    try:
        return datasets.load_dataset(place, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        if absent is not None:
            raise absent from error
        raise ConfigError(f"data set {name!r} could not be loaded: {error}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _cached(hub: Any, name: str) -> Path | None:
    """The newest snapshot of the model in the local cache, if it is whole enough to load."""
    try:
        folder = Path(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
    has_weights = any(_WEIGHTS.fullmatch(file.name) for file in folder.iterdir())
    return folder if has_weights and (folder / "config.json").is_file() else None


def _look_up(hub: Any, name: str, what: str) -> Any:
    """Ask the hub once, with no retries, whether it has ``name``."""
    ask = hub.model_info if what == "model" else hub.dataset_info
    wrong = ModelSourceError if what == "model" else ConfigError
    kind = "model" if what == "model" else "data set"
    try:
        return ask(name, timeout=_WAIT_SECONDS)
    except hub.errors.GatedRepoError as error:
        raise wrong(
            f"{kind} {name!r} is gated: accept its terms on its page and log in with 'hf auth"
            " login'"
        ) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise wrong(
            f"there is no {kind} {name!r} on the Hugging Face hub (or it is private: 'hf auth"
            " login'), and no such folder here"
        ) from error
    except _offline_errors(hub) as error:
        cache = hub.constants.HF_HUB_CACHE
        offline = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "no network"
        raise wrong(
            f"{offline}, and {kind} {name!r} is not in the cache ({_shown(cache)}): give a local"
            " folder, or fetch it where there is a network and set HF_HUB_OFFLINE=1 and HF_HOME to"
            " the copied cache"
        ) from error
    except Exception as error:  # the hub's client has kinds of errors that change by version
        raise wrong(f"asking the hub for {kind} {name!r} failed: {error}") from error


def _offline_errors(hub: Any) -> tuple[type[BaseException], ...]:
    """What the hub's client raises where nothing answers; its HTTP library changed with time."""
    found: list[type[BaseException]] = [ConnectionError, TimeoutError]
    found.append(hub.errors.OfflineModeIsEnabled)
    for library, names in (
        ("httpx2", ("TransportError",)),
        ("httpx", ("TransportError",)),
        ("requests", ("ConnectionError", "Timeout")),
    ):
        try:
            module = __import__(library)
        except ImportError:
            continue
        found += [getattr(module, name) for name in names]
    return tuple(found)


def _shown(folder: str) -> str:
    home = str(Path.home())
    return folder.replace(home, "~", 1) if folder.startswith(home) else folder
