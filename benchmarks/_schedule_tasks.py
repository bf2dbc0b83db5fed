"""The two tasks that schedules are measured on; their data ships with scikit-learn and with Python.

Each has a network that was pretrained on other labels, and a fixed split; a seed decides the new
head's weights, the order of the samples and dropout.
"""

from __future__ import annotations

import copy
import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from frostline.finetune.data import FINETUNING_DIGITS, load_digits_task
from frostline.finetune.pretrain import pretrained_digits_cnn

BATCH = 64
WORDS, LENGTH = 2_000, 24
WIDTH, DEPTH, HEADS = 48, 6, 2
PRETRAINING_MODULES, PRETRAINING_EPOCHS = 40, 8
LEAST_SNIPPETS, SNIPPETS_A_FILE = 20, 120
# Packages that every Python from 3.10 on has, of a dozen files and more each.
PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")
TRAIN_A_PACKAGE, VALIDATE_A_PACKAGE, TEST_A_PACKAGE = 96, 32, 160

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\sA-Za-z\d_]")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned, and from which weights on.

    Attributes:
        name: for the tables.
        what: data and network, in a sentence.
        pretrained: the network, with a head for other labels.
        width: features that the head gets.
        classes: labels to tell apart.
        train: (inputs, label), as many as fill whole batches.
        validation: for schedules that go by a metric.
        test: what accuracy is reported on.
        epochs: of fine-tuning.
        lr: AdamW's rate, constant.
    """

    name: str
    what: str
    pretrained: nn.Module
    width: int
    classes: int
    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset
    epochs: int
    lr: float

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; all are whole."""
        return len(self.train) // BATCH

    def model(self) -> nn.Module:
        """The pretrained network with a new head, drawn from the global generator."""
        model = copy.deepcopy(self.pretrained)
        model.head = nn.Linear(self.width, self.classes)
        return model

    def loader(self, seed: int) -> DataLoader[tuple[Tensor, ...]]:
        """The training samples in an order of this seed."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self.train, batch_size=BATCH, shuffle=True, generator=generator)


class SnippetTransformer(nn.Module):
    """A pre-norm transformer encoder over the words of a snippet; logits (batch, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits (batch, classes) for word numbers (batch, 24)."""
        hidden = self.words(words) + self.positions
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden.mean(dim=1)))
        return logits


def digits(epochs: int) -> Task:
    """Scans of 5-9, by the small CNN that knows 0-4."""
    task = load_digits_task(FINETUNING_DIGITS, seed=0)
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))
    whole = len(order) // BATCH * BATCH - BATCH  # what is left over validates
    train, rest = order[:whole], order[whole:]
    inputs, targets = task.train.inputs, task.train.targets
    return Task(
        name="digits",
        what="scikit-learn's scans of the digits 5-9, of 8 x 8 pixels; a CNN of 3 blocks,"
        " pretrained on 0-4",
        pretrained=pretrained_digits_cnn(print),
        width=128,
        classes=len(FINETUNING_DIGITS),
        train=TensorDataset(inputs[train], targets[train]),
        validation=TensorDataset(inputs[rest], targets[rest]),
        test=TensorDataset(task.held_out.inputs, task.held_out.targets),
        epochs=epochs,
        lr=3e-3,
    )


def text(epochs: int, folder: Path) -> Task:
    """Snippets of the standard library by package, other files in train, validation and test."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(library.glob("[a-z]*.py"), key=lambda f: (-f.stat().st_size, f.name))
    halves = [_halves(library / package) for package in PACKAGES]
    files = [words_of(file) for file in modules[:PRETRAINING_MODULES]]
    files += [words_of(file) for half, _ in halves for file in half]
    files = [words for words in files if len(words) >= LEAST_SNIPPETS * LENGTH]
    counts = Counter(word for words in files for word in words)
    numbers = {word: n for n, (word, _) in enumerate(counts.most_common(WORDS - 1), 1)}
    parts: list[list[tuple[Tensor, int]]] = [[], [], []]
    for label, (_, half) in enumerate(halves):
        for part, snippets in zip(parts, _split(half, numbers), strict=True):
            part += [(snippet, label) for snippet in snippets]
    train, validation, test = (
        TensorDataset(torch.stack([s for s, _ in part]), torch.tensor([label for _, label in part]))
        for part in parts
    )
    return Task(
        name="text",
        what=f"snippets of {LENGTH} words from the standard library's sources, by package"
        f" ({', '.join(PACKAGES)}), no file in both train and test; a transformer of {DEPTH}"
        f" blocks, pretrained to tell {len(files)} other files apart",
        pretrained=_pretrained(files, numbers, folder),
        width=WIDTH,
        classes=len(PACKAGES),
        train=train,
        validation=validation,
        test=test,
        epochs=epochs,
        lr=2e-3,
    )


def words_of(file: Path) -> list[str]:
    """A source file as words and signs, names cut where their parts meet.

    >>> _WORD.findall("self._maxSize = 10")
    ['self', '.', 'max', 'Size', '=', '10']
    """
    return [word.lower() for word in _WORD.findall(file.read_text("utf-8", errors="ignore"))]


def _snippets(words: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """Word numbers (snippets, 24), one after another, without overlap; 0 is an unknown word."""
    known = torch.tensor([numbers.get(word, 0) for word in words], dtype=torch.int64)
    count = len(known) // LENGTH
    return known[: count * LENGTH].view(count, LENGTH)


def _halves(package: Path) -> tuple[list[Path], list[Path]]:
    """The package's files, one half for pretraining, the other for fine-tuning."""
    files = sorted(f for f in package.rglob("*.py") if "test" not in f.relative_to(package).parts)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [files[place] for place in order]
    return drawn[::2], drawn[1::2]


def _split(files: Sequence[Path], numbers: dict[str, int]) -> list[Tensor]:
    """Snippets for training, validation and test, each file's all in one of them."""
    wanted = (TRAIN_A_PACKAGE, VALIDATE_A_PACKAGE, TEST_A_PACKAGE)
    held: list[list[Tensor]] = [[] for _ in wanted]
    largest_first = sorted(files, key=lambda f: (-f.stat().st_size, f.name))
    for file in largest_first:
        # To the part that has least of what it wants.
        filled = [sum(map(len, part)) / want for part, want in zip(held, wanted, strict=True)]
        held[filled.index(min(filled))].append(_snippets(words_of(file), numbers))
    generator = torch.Generator().manual_seed(0)
    parts = []
    for part, want in zip(held, wanted, strict=True):
        every = torch.cat(part)
        if len(every) < want:
            raise SystemExit(f"{files[0].parent} has too few sources for the text task")
        parts.append(every[torch.randperm(len(every), generator=generator)[:want]])
    return parts


def _pretrained(files: Sequence[Sequence[str]], numbers: dict[str, int], folder: Path) -> nn.Module:
    """Taught which file a snippet is from; kept in the folder for the next call."""
    facts = (
        BATCH,
        LENGTH,
        WIDTH,
        DEPTH,
        HEADS,
        PRETRAINING_EPOCHS,
        SNIPPETS_A_FILE,
        numbers,
        files,
    )
    key = hashlib.blake2b(repr((torch.__version__, facts)).encode(), digest_size=8).hexdigest()
    cache = folder / f"text-{key}.pt"
    if cache.exists():
        model = SnippetTransformer(len(files))
        model.load_state_dict(torch.load(cache, weights_only=True))
        return model
    print("pretraining the text network (once; it is kept)")
    generator = torch.Generator().manual_seed(0)
    inputs, labels = [], []
    for label, words in enumerate(files):
        every = _snippets(words, numbers)
        drawn = every[torch.randperm(len(every), generator=generator)[:SNIPPETS_A_FILE]]
        inputs.append(drawn)
        labels += [label] * len(drawn)
    data = TensorDataset(torch.cat(inputs), torch.tensor(labels))
    torch.manual_seed(0)
    model = SnippetTransformer(len(files))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(PRETRAINING_EPOCHS):
        for snippets, targets in DataLoader(data, batch_size=BATCH, shuffle=True):
            optimizer.zero_grad()
            # torch leaves backward unannotated.
            F.cross_entropy(model(snippets), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    optimizer.zero_grad()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), cache)
    return model


TASKS: dict[str, Callable[[int, Path], Task]] = {
    "digits": lambda epochs, folder: digits(epochs),
    "text": text,
}
