"""Each code has a page, and the page's two examples do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from frostline.check import RULES

FOLDER = Path(__file__).parents[2] / "docs" / "checks"
PAGES = {page.stem: page for page in FOLDER.glob("FL*.md")}


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    assert set(PAGES) == set(RULES)


def test_codes_and_names_are_unique_and_well_formed() -> None:
    assert all(re.fullmatch(r"FL[0-6]\d\d", code) for code in RULES)
    assert len({rule.name for rule in RULES.values()}) == len(RULES)
    assert list(RULES) == sorted(RULES)


def test_the_index_lists_every_rule_as_it_is() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(FL\d+)\]\(\1\.md\)[ †‡]* \| (.+) \| (.+) \| (.+) \|$", index, re.M)
    expected = [(r.code, r.name, r.severity, r.summary) for r in RULES.values()]
    assert rows == expected


@pytest.mark.parametrize("code", sorted(PAGES))
def test_a_page_says_what_its_rule_says(code: str) -> None:
    text = " ".join(PAGES[code].read_text(encoding="utf-8").split())
    rule = RULES[code]
    assert text.startswith(f"# {code}: {rule.name} *{rule.severity.capitalize()}.*")
    assert f"To mend it, {rule.fix}." in text


@pytest.mark.parametrize("code", sorted(PAGES))
def test_both_examples(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGES[code].read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(examples) == 2
    failing, mended = (_findings(example, PAGES[code]) for example in examples)
    assert {finding.code for finding in failing} == {code}
    assert {finding.severity for finding in failing} == {RULES[code].severity}
    assert mended == []


def _findings(source: str, page: Path) -> list:  # type: ignore[type-arg]
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(source, str(page), "exec"), namespace)
    findings = namespace["findings"]
    assert isinstance(findings, list)
    return findings
