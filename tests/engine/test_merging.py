"""Which labels count as one."""

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
def test_plural_case_and_prefix_make_no_other_label(one: str, other: str) -> None:
    merged = merge_labels([one, other, "unlike"])
    assert merged[one] == merged[other] != merged["unlike"]


@pytest.mark.parametrize(("one", "other"), [("colour", "shape"), ("glass", "grass"), ("location", "geo-location")])
def test_others_stay_apart(one: str, other: str) -> None:
    assert merge_labels([one, other]) == {one: one, other: other}


def test_what_is_joined_through_others_is_one_group_in_every_order() -> None:
    labels = ["geography", "geo", "geo-location", "Geos", "art", "arts"]
    wanted = merge_labels(labels)
    assert wanted["geography"] == wanted["geo-location"] == wanted["geo"] == "geo"
    for order in itertools.permutations(labels):
        assert merge_labels(order) == wanted
    # Without the short one, nothing joins the two long ones.
    assert merge_labels(["geography", "geo-location"])["geography"] == "geography"


def test_a_group_goes_by_its_commonest_label_and_then_by_its_shortest() -> None:
    assert merge_labels(["colours", "colours", "colour"]) == {"colours": "colours", "colour": "colours"}
    assert merge_labels(["colours", "colour", None]) == {"colours": "colour", "colour": "colour"}


def test_without_prefixes_plural_and_case_alone_join() -> None:
    merged = merge_labels(["car", "Cars", "carpet", "carpets"], prefixes=False)
    assert merged == {"car": "car", "Cars": "car", "carpet": "carpet", "carpets": "carpet"}


def test_nothing_to_merge_is_nothing() -> None:
    assert merge_labels([]) == {}
    assert merge_labels([None]) == {}
