from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from zoo import models

import frostline as fl
from frostline.errors import SelectorError
from frostline.naming import take_inventory
from frostline.selection import Selector, from_plain

LEAVES = st.sampled_from(
    [
        "**",
        "0",
        "1",
        "*.weight",
        "**.bias",
        "re:[13]",
        "type:Linear",
        "type:Block",
        "first:1",
        "last:2",
        "weight",
        "before:1",
    ]
).map(Selector.parse)

SELECTORS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=4,
)


def found(model, selector):
    """Indices that a selector matches; the empty set where it is refused for matching nothing."""
    try:
        return frozenset(selector.find(take_inventory(model)))
    except SelectorError:
        return frozenset()


def all_match(model, *selectors):
    return all(found(model, selector) for selector in selectors)


@given(models(), SELECTORS, SELECTORS)
def test_union_and_intersection_are_those_of_sets(model, a, b):
    if not all_match(model, a, b):
        return
    assert found(model, a | b) == found(model, a) | found(model, b) == found(model, b | a)
    assert found(model, a & b) == found(model, a) & found(model, b) == found(model, b & a)


@given(models(), SELECTORS)
def test_not_is_the_complement(model, a):
    everything = found(model, Selector.parse("**"))
    if all_match(model, a):
        assert found(model, ~a) == everything - found(model, a)
        assert found(model, a | a) == found(model, a & a) == found(model, a)
    if all_match(model, a, ~a):
        assert found(model, ~~a) == found(model, a)


@given(models(), SELECTORS, SELECTORS)
def test_de_morgan(model, a, b):
    if all_match(model, a, b, ~a, ~b, a & b, a | b):
        assert found(model, ~(a & b)) == found(model, ~a | ~b)
        assert found(model, ~(a | b)) == found(model, ~a & ~b)


@given(models(), SELECTORS)
def test_what_is_written_reads_back_the_same(model, a):
    again = from_plain(a.plain())
    assert again == a
    assert found(model, again) == found(model, a)


@given(models(), SELECTORS)
def test_a_selection_is_whole_groups_in_definition_order(model, a):
    if not all_match(model, a):
        return
    names = fl.select(model, a).names
    order = [name for group in take_inventory(model).groups for name in group.named]
    assert list(names) == [name for name in order if name in set(names)]
