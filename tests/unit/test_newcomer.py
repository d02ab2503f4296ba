"""Who may join and under which name: situations, and what is decided."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from node.core.model import Capacity, Node, Removal
from node.core.newcomer import (
    CLOCK_DIFFERENCE_MAX_S,
    HOST_NAMES_MAX,
    NAME_CLAIM_S,
    Asked,
    Greeting,
    NameClaim,
    Newcomer,
    Why,
    candidates,
    is_loopback_host,
    is_wildcard_host,
    may_claim,
    names_of_others,
    refusal_of_greeting,
    refusal_of_newcomer,
)

NOW = 1_800_000_000.0
CLUSTER = "0190f3c0-0000-7000-8000-00000000c0de"
OTHER_CLUSTER = "0190f3c0-0000-7000-8000-00000000beef"
PEER, HOST, OTHER = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3))

ASKED = Asked(1, "0.1.0", CLUSTER, PEER, NOW, is_from_elsewhere=True)
GREETING = Greeting(1, "0.1.0", CLUSTER, NOW)
NEWCOMER = Newcomer(HOST, "web", is_name_given=True, address="10.0.0.2:7400", host_names=("web",))


def node(host_id: str, name: str = "web", address: str = "10.0.0.3:7400") -> Node:
    return Node("0190f3c0-0000-7000-8000-000000000009", host_id, name, Capacity(1.0, 1), "0.1.0", NOW, address)


def test_what_agrees_is_not_refused() -> None:
    assert refusal_of_greeting(GREETING, ASKED) is None
    assert refusal_of_newcomer(NEWCOMER, ASKED, nodes=[node(PEER, "a")], removed={}) is None


@pytest.mark.parametrize(
    ("greeting", "why", "words"),
    [
        (replace(GREETING, protocol=2, version="0.9"), Why.PROTOCOL, "version 0.9.*cluster 1 .version 0.1.0"),
        (replace(GREETING, protocol=0, version=""), Why.PROTOCOL, "unknown"),
        (replace(GREETING, cluster_id=OTHER_CLUSTER), Why.WRONG_CLUSTER, f"{OTHER_CLUSTER}.*{CLUSTER}"),
        (replace(GREETING, cluster_id=""), Why.WRONG_CLUSTER, "none"),
        (replace(GREETING, now=NOW - 31), Why.CLOCK, "31 s behind.*NTP"),
        (replace(GREETING, now=NOW + 3600), Why.CLOCK, "3600 s ahead of"),
        (replace(GREETING, now=0.0), Why.CLOCK, "behind"),
        (replace(GREETING, now=float("nan")), Why.CLOCK, "far"),
        # Another version with the same protocol is an upgrade, node by node; what else is wrong counts after it.
        (replace(GREETING, protocol=2, cluster_id=OTHER_CLUSTER, now=0.0), Why.PROTOCOL, "install"),
    ],
)
def test_what_does_not_agree(greeting: Greeting, why: Why, words: str) -> None:
    refusal = refusal_of_greeting(greeting, ASKED)
    assert refusal is not None
    assert refusal.why is why
    assert refusal.field in ("protocol", "cluster_id", "now")
    assert re.search(words, refusal.message), refusal.message


@pytest.mark.parametrize("difference_s", [-CLOCK_DIFFERENCE_MAX_S, 0.0, CLOCK_DIFFERENCE_MAX_S])
def test_clocks_may_differ_a_little(difference_s: float) -> None:
    assert refusal_of_greeting(replace(GREETING, now=NOW + difference_s, version="0.2.0"), ASKED) is None


@pytest.mark.parametrize(
    ("newcomer", "why", "field", "words"),
    [
        (replace(NEWCOMER, host_id="me"), Why.INVALID, "host_id", "UUID"),
        (replace(NEWCOMER, host_id=PEER), Why.SELF, "host_id", "--peers"),
        (replace(NEWCOMER, host_id=OTHER), Why.HOST_ALIVE, "host_id", "copy"),
        (replace(NEWCOMER, host_id="00000000-0000-4000-8000-0000000000ff"), Why.REMOVED, "host_id", "old.*--data-dir"),
        (replace(NEWCOMER, name=""), Why.INVALID, "name", "1 to 64"),
        (replace(NEWCOMER, name="x" * 65), Why.INVALID, "name", "1 to 64"),
        (replace(NEWCOMER, name="a\nb"), Why.INVALID, "name", "printable"),
        (replace(NEWCOMER, name=" a"), Why.INVALID, "name", "printable"),
        (replace(NEWCOMER, host_names=("a",) * (HOST_NAMES_MAX + 1)), Why.INVALID, "host_names", "65 names"),
        (replace(NEWCOMER, address=""), Why.INVALID, "address", "--listen"),
        (replace(NEWCOMER, address="10.0.0.2"), Why.INVALID, "address", "--listen"),
        (replace(NEWCOMER, address="2001:db8::1:7400"), Why.INVALID, "address", "--listen"),
        (replace(NEWCOMER, address="a b:7400"), Why.INVALID, "address", "--listen"),
        (replace(NEWCOMER, address="10.0.0.2:0"), Why.INVALID, "address", "--listen"),
        (replace(NEWCOMER, address="10.0.0.2:65536"), Why.INVALID, "address", "--listen"),
        (replace(NEWCOMER, address="127.0.0.1:7400"), Why.ADDRESS_UNREACHABLE, "address", "--advertise"),
        (replace(NEWCOMER, address="[::1]:7400"), Why.ADDRESS_UNREACHABLE, "address", "--advertise"),
        (replace(NEWCOMER, address="localhost:7400"), Why.ADDRESS_UNREACHABLE, "address", "--advertise"),
        (replace(NEWCOMER, address="0.0.0.0:7400"), Why.ADDRESS_UNREACHABLE, "address", "--advertise"),
        (replace(NEWCOMER, address="[::]:7400"), Why.ADDRESS_UNREACHABLE, "address", "--advertise"),
        (replace(NEWCOMER, address="10.0.0.3:7400"), Why.ADDRESS_TAKEN, "address", "web"),
    ],
)
def test_whom_the_cluster_refuses(newcomer: Newcomer, why: Why, field: str, words: str) -> None:
    removed = {"00000000-0000-4000-8000-0000000000ff": Removal("old", NOW)}
    refusal = refusal_of_newcomer(newcomer, ASKED, nodes=[node(OTHER)], removed=removed)
    assert refusal is not None
    assert (refusal.why, refusal.field) == (why, field)
    assert re.search(words, refusal.message), refusal.message


@pytest.mark.parametrize("address", ["[2001:db8::1]:7400", "node-7.example:7400", "10.0.0.3:7401"])
def test_addresses_that_will_do(address: str) -> None:
    newcomer = replace(NEWCOMER, address=address)
    assert refusal_of_newcomer(newcomer, ASKED, nodes=[node(PEER)], removed={}) is None


def test_on_one_machine_loopback_will_do_and_a_wildcard_will_not() -> None:
    here = replace(ASKED, is_from_elsewhere=False)
    local = replace(NEWCOMER, address="127.0.0.2:7400")
    assert refusal_of_newcomer(local, here, nodes=[], removed={}) is None
    wildcard = refusal_of_newcomer(replace(NEWCOMER, address="0.0.0.0:7400"), here, nodes=[], removed={})
    assert wildcard is not None
    assert wildcard.why is Why.ADDRESS_UNREACHABLE


@pytest.mark.parametrize(
    ("host", "is_loopback", "is_wildcard"),
    [
        ("127.0.0.1", True, False),
        ("127.255.0.1", True, False),
        ("LOCALHOST", True, False),
        ("localhost.", True, False),
        ("[::1]", True, False),
        ("::ffff:127.0.0.1", True, False),
        ("0.0.0.0", False, True),
        ("[::]", False, True),
        ("::ffff:0.0.0.0", False, True),
        ("10.0.0.1", False, False),
        ("[2001:db8::1]", False, False),
        ("127.example", False, False),
        ("localhost.example", False, False),
    ],
)
def test_hosts_that_mean_this_machine_or_any(host: str, is_loopback: bool, is_wildcard: bool) -> None:
    assert (is_loopback_host(host), is_wildcard_host(host)) == (is_loopback, is_wildcard)


def test_a_given_name_is_the_only_one() -> None:
    assert list(candidates(NEWCOMER)) == ["web"]


def test_a_made_up_name_gets_a_number() -> None:
    made_up = replace(NEWCOMER, is_name_given=False)
    assert list(itertools.islice(candidates(made_up), 4)) == ["web", "web-2", "web-3", "web-4"]
    long = replace(made_up, name="x" * 64)
    assert list(itertools.islice(candidates(long), 3)) == ["x" * 64, "x" * 62 + "-2", "x" * 62 + "-3"]
    everything = list(candidates(long))
    assert len(set(everything)) == len(everything)
    assert max(map(len, everything)) == 64


def test_own_names_are_not_taken_by_oneself() -> None:
    assert names_of_others([node(OTHER, "a"), node(HOST, "b")], HOST) == {"a"}


@pytest.mark.parametrize(
    ("claim", "taken", "may"),
    [
        (None, (), True),
        (None, ("web",), False),
        (NameClaim(HOST, NOW), (), True),
        (NameClaim(HOST, NOW), ("web",), False),
        (NameClaim(OTHER, NOW), (), False),
        (NameClaim(OTHER, NOW - NAME_CLAIM_S + 1), (), False),
        (NameClaim(OTHER, NOW - NAME_CLAIM_S), (), True),
        (NameClaim(OTHER, NOW + CLOCK_DIFFERENCE_MAX_S), (), False),
        # Nobody's clock may be that far ahead: a claim must not count for ever.
        (NameClaim(OTHER, NOW + 1e6), (), True),
    ],
)
def test_who_may_have_a_name(claim: NameClaim | None, taken: tuple[str, ...], may: bool) -> None:
    assert may_claim("web", claim, host_id=HOST, taken=taken, now=NOW) is may
