"""Merging of labels that name one concept."""

from __future__ import annotations

import itertools

import pytest

from headspan.concepts.merging import merge_labels


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("colour", "colours"),
        ("Colour", "colour"),
        ("city", "cities"),
        ("box", "boxes"),
        ("leaf", "leaves"),
        ("wave", "waves"),
        ("knife", "knives"),
        ("house", "houses"),
        ("person", "people"),
        ("woman", "women"),
        ("geo", "geo-location"),
        ("geolocation", "geo-location"),
        ("location", "locations"),
        ("photo", "photography"),
    ],
)
def test_labels_that_differ_in_plural_case_or_prefix_are_merged(one: str, other: str) -> None:
    merged = merge_labels([one, other, "unlike"])
    assert merged[one] == merged[other] != merged["unlike"]


@pytest.mark.parametrize(("one", "other"), [("colour", "shape"), ("glass", "grass"), ("location", "geo-location")])
def test_other_labels_are_not_merged(one: str, other: str) -> None:
    assert merge_labels([one, other]) == {one: one, other: other}


def test_groups_do_not_depend_on_the_order_of_labels() -> None:
    labels = ["geography", "geo", "geo-location", "Geos", "art", "arts"]
    wanted = merge_labels(labels)
    assert wanted["geography"] == wanted["geo-location"] == wanted["geo"] == "geo"
    for order in itertools.permutations(labels):
        assert merge_labels(order) == wanted
    # Without the short label, the two long ones are not joined.
    assert merge_labels(["geography", "geo-location"])["geography"] == "geography"


def test_the_most_common_then_the_shortest_label_represents_a_group() -> None:
    assert merge_labels(["colours", "colours", "colour"]) == {"colours": "colours", "colour": "colours"}
    assert merge_labels(["colours", "colour", None]) == {"colours": "colour", "colour": "colour"}


def test_without_prefixes_only_plural_and_case_are_merged() -> None:
    merged = merge_labels(["car", "Cars", "carpet", "carpets"], prefixes=False)
    assert merged == {"car": "car", "Cars": "car", "carpet": "carpet", "carpets": "carpet"}


def test_no_labels_give_no_groups() -> None:
    assert merge_labels([]) == {}
    assert merge_labels([None]) == {}
