"""The pretrained network of the default job: trained once on the digits 0-4, then cached.

The cache only saves time. Whatever is wrong with it, the network is trained again, and a note
says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import default_collate

from frostline.errors import OutputError
from frostline.files import replace_atomically
from frostline.finetune import data, loading, loop, networks
from frostline.finetune.data import PRETRAINING_DIGITS, load_digits_task, scans_version
from frostline.finetune.engine import Engine
from frostline.finetune.loading import Batches, make_loader
from frostline.finetune.networks import DigitsCNN
from frostline.finetune.threads import threads
from frostline.proof import fingerprint
from frostline.replay.loading_views import generators_kept


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the network is pretrained; part of the cache's key.

    Attributes:
        digits: the digits that it learns.
        epochs: passes over their scans.
        lr: AdamW's learning rate.
        batch_size: scans a step.
        seed: decides split, first weights, order and dropout.
    """

    digits: tuple[int, ...] = PRETRAINING_DIGITS
    epochs: int = 8
    lr: float = 3e-3
    batch_size: int = 32
    seed: int = 0


def pretrained_digits_cnn(
    note: Callable[[str], object], *, recipe: Recipe = Recipe(), folder: Path | None = None
) -> DigitsCNN:
    """A :class:`DigitsCNN` that knows the digits 0-4, from the cache or trained now.

    Args:
        note: told in one line what is slow or wrong: training, a broken cache file, a cache
            folder that can't be written.
        recipe: how to train it.
        folder: where the cache is; :func:`cache_folder` if None.

    Raises:
        ConfigError: scikit-learn, which has the scans, is missing.
    """
    try:
        folder = folder or cache_folder()
    except RuntimeError:  # no home folder: a bare container user
        note("no cache folder (set FROSTLINE_CACHE to have one): pretraining each time")
        return _train(recipe)
    path = folder / f"digits-cnn-{cache_key(recipe)}.safetensors"
    if path.exists():
        try:
            return _load(path, len(recipe.digits))
        except (OSError, SafetensorError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            note(f"the cached network {path} can't be used ({reason}): pretraining again")
    else:
        note("pretraining digits-cnn on the digits 0-4 (once; it is cached)")
    model = _train(recipe)
    try:
        _save(model, path)
    except OutputError as error:
        note(f"the pretrained network is not cached: {error} (FROSTLINE_CACHE names it)")
    return model


def cache_folder() -> Path:
    """``$FROSTLINE_CACHE``, or ``$XDG_CACHE_HOME/frostline``, or ``~/.cache/frostline``.

    Raises:
        RuntimeError: none is set and the user has no home folder.
    """
    if own := os.environ.get("FROSTLINE_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    if Path(shared).is_absolute():
        return Path(shared) / "frostline"
    return Path.home() / ".cache" / "frostline"


def cache_key(recipe: Recipe) -> str:
    """Sixteen hex digits over everything that decides the pretrained weights' bits.

    The recipe, the code that carries it out, the scans' source, torch, and which kernels it
    picks on this processor.
    """
    files = (data.__file__, loading.__file__, loop.__file__, networks.__file__, __file__)
    code = [hashlib.blake2b(Path(file).read_bytes()).hexdigest() for file in files]
    facts = {
        "recipe": asdict(recipe),
        "code": code,
        "torch": torch.__version__,
        "scikit-learn": scans_version(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _train(recipe: Recipe) -> DigitsCNN:
    task = load_digits_task(recipe.digits, seed=recipe.seed)
    engine = Engine()
    with generators_kept(), threads(1):
        torch.manual_seed(recipe.seed)
        model = DigitsCNN(len(recipe.digits)).to(engine.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr)
        batches = Batches(len(task.train), recipe.batch_size, seed=recipe.seed)
        loader = make_loader(task.train, default_collate, batches)
        for batches.epoch in range(1, recipe.epochs + 1):
            loop.train_epoch(
                lambda: model,
                optimizer,
                loader,
                engine=engine,
                seed=recipe.seed,
                epoch=batches.epoch,
            )
    # Else the last epoch's gradients stay behind and count as pending when layers are frozen.
    optimizer.zero_grad()
    return model.cpu().eval()


def _save(model: DigitsCNN, path: Path) -> None:
    """Write the weights, with each tensor's fingerprint so that a flipped bit is noticed."""
    tensors = model.state_dict()
    prints = {name: fingerprint(tensor) for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=prints)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    replace_atomically(path, write)


def _load(path: Path, classes: int) -> DigitsCNN:
    """Read the network; raises ValueError, OSError or SafetensorError if it is not whole."""
    # Whether it is read or trained, the caller's next random numbers are the same.
    with torch.random.fork_rng(devices=[]):
        model = DigitsCNN(classes)
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        prints = file.metadata() or {}
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            tensors[name] = file.get_tensor(name)
    wanted = model.state_dict()
    if tensors.keys() != wanted.keys():
        raise ValueError("it has other tensors")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or prints.get(name) != fingerprint(tensor):
            raise ValueError(f"{name} is damaged")
    model.load_state_dict(tensors)
    return model.eval()
