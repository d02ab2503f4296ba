"""Which node a user means."""

from __future__ import annotations

import pytest

from node.core.find_node import KnownNode, find_nodes, is_too_short, naming

A = KnownNode("aaaa1111-0000-4000-8000-000000000001", "11110000-0000-4000-8000-000000000001", "a", is_living=True)
B = KnownNode("aaaa2222-0000-4000-8000-000000000002", "22220000-0000-4000-8000-000000000002", "b", is_living=True)
OLD_B = KnownNode("bbbb0000-0000-4000-8000-000000000003", "33330000-0000-4000-8000-000000000003", "b", is_living=False)
#: Its only id is that of the host.
REMOVED = KnownNode("cccc0000-0000-4000-8000-000000000004", "", "c", is_living=False)
ALL = (A, B, OLD_B, REMOVED)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a", [A]),  # a name, though it begins two host ids
        ("aaaa", [A, B]),
        ("aaaa1", [A]),
        ("AAAA1", [A]),
        ("2222", [B]),
        (B.node_id, [B]),
        ("b", [B, OLD_B]),  # one is gone, and has left its name
        ("bbbb", [OLD_B]),
        ("c", [REMOVED]),
        ("d", []),
        ("A", [A, B]),  # a name is taken as it is written
        ("", []),
        (A.node_id + "0", []),
    ],
)
def test_by_name_then_by_prefix(given: str, found: list[KnownNode]) -> None:
    assert find_nodes(given, ALL) == found


def test_a_host_whose_ids_both_fit_is_one_answer() -> None:
    both = KnownNode(
        "77770000-0000-4000-8000-000000000001", "77770000-0000-4000-8000-000000000002", "n", is_living=True
    )
    assert find_nodes("7777", [both]) == [both]


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ("a", False),  # a name is whole, however short
        ("b", False),
        ("A", True),
        ("2", True),  # one alone has such an id, and might not be meant
        ("aaa", True),
        ("aaaa", False),
        ("2222", False),
        ("d", False),  # means nothing at all
        ("", False),
    ],
)
def test_a_few_characters_are_nobodys_id(given: str, refused: bool) -> None:
    assert is_too_short(given, find_nodes(given, ALL)) is refused


def test_several_are_told_apart_by_their_host_ids() -> None:
    assert naming(B) == f"b (host {B.host_id}, alive)"
    assert naming(OLD_B) == f"b (host {OLD_B.host_id}, gone)"
