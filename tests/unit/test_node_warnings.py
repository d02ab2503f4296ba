"""What an operator is told of nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.core.node_warnings import SeenNode, may_be_one_of_several, node_warnings

A = SeenNode("id-a", "a", "0.2.0", "voter", "3.5.30", clock_ahead_s=0.0)
B = replace(A, id="id-b", name="b", role="client")


def warnings(*nodes: SeenNode, voters: int = 1, gone_voters: tuple[str, ...] = ()) -> dict[str, list[str]]:
    return dict(node_warnings(nodes, me="id-a", voters=voters, gone_voters=gone_voters))


def test_nothing_to_say_of_nodes_that_are_well() -> None:
    assert warnings(A) == {"id-a": []}
    assert warnings(A, B, voters=3) == {"id-a": [], "id-b": []}


@pytest.mark.parametrize(
    ("ahead_s", "error_s", "words"),
    [
        (1.5, 0.0, ["its clock is 1.5 s ahead of that of a: set it"]),
        (-90.0, 0.2, ["its clock is 90.0 s behind that of a: set it"]),
        (0.9, 0.0, []),
        (1.5, 0.6, []),  # the answer was that slow
        (None, 0.0, []),
    ],
)
def test_a_clock_that_differs(ahead_s: float | None, error_s: float, words: list[str]) -> None:
    assert warnings(A, replace(B, clock_ahead_s=ahead_s, clock_error_s=error_s))["id-b"] == words


def test_an_older_version_is_to_be_upgraded_and_versions_are_numbers() -> None:
    newer = replace(B, version="0.10.0.dev1")
    assert warnings(A, newer) == {
        "id-a": ["runs version 0.2.0, while 0.10.0.dev1 runs elsewhere: upgrade it"],
        "id-b": [],
    }


def test_an_etcd_too_old_for_a_second_voter_matters_where_there_is_a_second_node() -> None:
    old = replace(A, etcd_version="3.4.23")
    assert warnings(old) == {"id-a": []}
    (words,) = warnings(old, B)["id-a"]
    assert words.startswith("etcd 3.4.23 is too old")
    assert warnings(A, replace(B, etcd_version=""))["id-b"] == [], "it did not answer"


@pytest.mark.parametrize(
    ("version", "may"),
    [
        ("3.4.37", False),
        ("3.4.38", True),
        ("3.5.22", False),
        ("3.5.23", True),
        ("3.6.0", True),
        ("3.3.27", False),
        ("4.0", True),
        ("", False),
        ("new", False),
    ],
)
def test_which_etcd_may_be_one_of_several(version: str, may: bool) -> None:
    assert may_be_one_of_several(version) is may


def test_what_concerns_the_cluster_stands_at_the_node_that_was_asked() -> None:
    told = warnings(A, B, voters=2, gone_voters=("c",))
    assert told["id-a"] == [
        "etcd has 2 voters: an even number adds risk and no safety",
        "c has a vote in etcd and is gone: one more loss weighs more until it is back",
    ]
    assert told["id-b"] == []
    assert warnings(B, voters=2) == {"id-b": []}, "a node without a lease of its own was asked"
