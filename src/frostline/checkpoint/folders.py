"""Model folders as Hugging Face writes them: made whole or not at all, without the weights."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from frostline.errors import OutputError

# Other forms of the weights, which those of a merged model would contradict.
_WEIGHT_SUFFIXES = (
    ".bin", ".ckpt", ".gguf", ".h5", ".index.json", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pt",
    ".pth", ".safetensors", ".tflite",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"


@contextmanager
def appearing_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``out`` once all is in it; after a failure it is gone.

    Raises:
        OutputError: (an OSError) it could not be written.

    >>> with tempfile.TemporaryDirectory() as place:
    ...     with appearing_folder(Path(place, "out")) as folder:
    ...         _ = (folder / "a.txt").write_text("a")
    ...     Path(place, "out", "a.txt").exists()
    True
    """
    try:
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        whole = place / "whole"
        whole.mkdir()  # with the permissions of any folder, where mkdtemp makes a private one
        yield whole
        if out.is_dir():
            out.rmdir()
        whole.replace(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def copy_all_but_weights(source: Path, folder: Path) -> None:
    """Copy configuration, tokenizer and the like; what is hidden stays, as weights do."""
    for file in sorted(source.rglob("*")):
        path = file.relative_to(source)
        hidden = any(part.startswith(".") for part in path.parts)
        if file.is_file() and not hidden and not path.name.lower().endswith(_WEIGHT_SUFFIXES):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path)


def safetensors_name(file: Path) -> str:
    """What a file of weights is called once it is ``.safetensors``.

    >>> safetensors_name(Path("pytorch_model-00001-of-00002.bin"))
    'model-00001-of-00002.safetensors'
    """
    if file.suffix.lower() == ".safetensors":
        return file.name
    return file.stem.replace("pytorch_model", "model") + ".safetensors"


def write_index(folder: Path, weight_map: Mapping[str, str], nbytes: int) -> None:
    """Write the index of a checkpoint in shards.

    Args:
        folder: where its shards lie.
        weight_map: name of a tensor → name of its file.
        nbytes: bytes of all tensors.
    """
    index = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _unwritable(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {out}: {error.strerror or error}; free some space, or choose another place"
        " that you may write to"
    )
