"""What the documents show is run: snippets, commands, the examples in docstrings.

What a ``python`` block prints is compared with the ``text`` block that follows it at once, if one
does. A block below a line that names a file (`` `job.yaml`: ``) is that file for the commands of
its page. A fenced block is left out only after a line ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import frostline

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?P<skip><!-- not run: .+? -->\s*\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.M | re.S,
)
NAMED_FILE = re.compile(r"^`(?P<name>[\w.]+)`:\n\n```\w+\n(?P<body>.*?)^```$", re.M | re.S)
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A fenced block: where it stands, its text, and what it is said to print."""

    page: Path
    line: int
    body: str
    output: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path, *languages: str) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match["language"] in languages and not match["skip"]:
            line = text.count("\n", 0, match.start("body")) + 1
            yield Snippet(page=page, line=line, body=match["body"], output=match["output"])


def run_doctest(body: str, namespace: dict[str, object], name: str, line: int) -> None:
    test = doctest.DocTestParser().get_doctest(body, namespace, name, name, line - 1)
    said: list[str] = []
    # A copy of the names goes in and the names come out: the page's next snippet goes on from it.
    outcome = doctest.DocTestRunner(optionflags=DOCTEST_FLAGS).run(
        test, out=said.append, clear_globs=False
    )
    namespace.update(test.globs)
    assert outcome.failed == 0, "".join(said)


def commands() -> Iterator[object]:
    """Each different ``$ frostline …`` line of the documents, named by where it stands first."""
    seen: set[str] = set()
    for page in PAGES:
        for snippet in snippets(page, "console", "bash"):
            for offset, line in enumerate(snippet.body.splitlines()):
                if line.startswith("$ frostline") and line not in seen:
                    seen.add(line)
                    # The only command that trains: tens of seconds on two cores.
                    marks = [pytest.mark.slow] if "frostline finetune" in line else []
                    place = f"{page.relative_to(ROOT)}:{snippet.line + offset}"
                    yield pytest.param(page, line.removeprefix("$ "), id=place, marks=marks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_snippets_run_in_order(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippet"}
    for snippet in snippets(page, "python"):
        if ">>>" in snippet.body:
            run_doctest(snippet.body, namespace, snippet.place, snippet.line)
        else:
            # Padded with empty lines, so that a traceback names the line of the page.
            source = "\n" * (snippet.line - 1) + snippet.body
            exec(compile(source, str(page), "exec"), namespace)
            printed = capsys.readouterr().out
            if snippet.output is not None:
                same = doctest.OutputChecker().check_output(snippet.output, printed, DOCTEST_FLAGS)
                assert same, f"{snippet.place} prints\n{printed}"


def test_readme_has_a_first_example_that_is_run() -> None:
    assert list(snippets(ROOT / "README.md", "python"))


@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_commands_succeed(
    page: Path, command: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for file in NAMED_FILE.finditer(page.read_text(encoding="utf-8")):
        (tmp_path / file["name"]).write_text(file["body"], encoding="utf-8")
    words = shlex.split(command, comments=True)
    settings = {
        "COLUMNS": "100",
        "FROSTLINE_CACHE": str(tmp_path_factory.getbasetemp() / "cache"),
        "OMP_NUM_THREADS": "1",  # threads that wait for each other crawl on a busy machine
    }
    run = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def modules() -> list[str]:
    found = pkgutil.walk_packages(frostline.__path__, prefix="frostline.")
    return ["frostline", *(module.name for module in found if module.name != "frostline.__main__")]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=DOCTEST_FLAGS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```$|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []
