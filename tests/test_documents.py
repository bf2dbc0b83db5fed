from __future__ import annotations

import pytest

from frostline.documents import parse_yaml, read_text


@pytest.mark.parametrize(
    ("text", "again"),
    [
        pytest.param("a: 1\na: 2", "a is given twice, in line 2 again", id="at-the-top"),
        pytest.param("a:\n- b: 1\n  b: 2", "b is given twice, in line 3 again", id="below"),
    ],
)
def test_a_key_that_is_given_twice(text, again):
    with pytest.raises(KeyError, match=again):
        parse_yaml(text, source="plan.yaml", error=KeyError)


def test_a_key_may_stand_in_two_mappings_and_a_mapping_in_two_places():
    text = "- &one {a: 1}\n- {a: 2}\n- *one"
    assert parse_yaml(text, source="x", error=KeyError) == [{"a": 1}, {"a": 2}, {"a": 1}]


def test_aliases_that_unfold_without_end_are_walked_once():
    levels = [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert parse_yaml(f"[&a0 [x], {', '.join(levels)}]", source="x", error=KeyError)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(path, called="the plan", error=KeyError) == "a: 1"
