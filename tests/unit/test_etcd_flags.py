"""etcd's command line, by what the program knows; and its last words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from etcd.binary import EtcdBinary
from etcd.endpoints import ClientTls
from etcd.ports import Ports
from etcd.server_flags import (
    EtcdConfig,
    arguments,
    client_url,
    known_flags,
    last_words,
    peer_url,
    tells_removal,
)

HELP_34 = """
  --name 'default'
    Human-readable name for this member.
  --log-outputs 'default'
  --experimental-compaction-batch-limit 1000
"""
HELP_35 = HELP_34 + "  --enable-log-rotation 'false'\n  --enable-grpc-gateway\n"
HELP_36 = "  --compaction-batch-limit 1000\n  --snapshot-catchup-entries 5000\n  --enable-log-rotation 'false'\n"


def config(version: tuple[int, int, int] = (3, 5, 30)) -> EtcdConfig:
    tls = ClientTls(Path("/p/ca"), Path("/p/cert"), Path("/p/key"))
    return EtcdConfig(EtcdBinary(Path("/x/etcd"), version), name="me", directory=Path("/d"), tls=tls)


def flags(version: tuple[int, int, int], help_text: str) -> dict[str, str]:
    given = arguments(config(version), Ports(1001, 1002), known_flags(help_text))
    return dict(argument.removeprefix("--").split("=", 1) for argument in given)


@pytest.mark.parametrize(
    ("version", "help_text", "there", "absent"),
    [
        (
            (3, 4, 23),
            HELP_34,
            {"experimental-compaction-batch-limit"},
            {"experimental-snapshot-catchup-entries", "enable-log-rotation", "enable-grpc-gateway"},
        ),
        (
            (3, 5, 30),
            HELP_35,
            {
                "experimental-compaction-batch-limit",
                "experimental-snapshot-catchup-entries",
                "enable-log-rotation",
                "enable-grpc-gateway",
            },
            {"compaction-batch-limit", "snapshot-catchup-entries"},
        ),
        (
            (3, 6, 1),
            HELP_36,
            {"compaction-batch-limit", "snapshot-catchup-entries"},
            {"experimental-compaction-batch-limit", "experimental-snapshot-catchup-entries"},
        ),
    ],
)
def test_only_flags_that_the_version_has(
    version: tuple[int, int, int], help_text: str, there: set[str], absent: set[str]
) -> None:
    given = flags(version, help_text)
    assert there <= given.keys()
    assert not absent & given.keys()


def test_both_ports_want_client_certificates_and_nothing_is_plain() -> None:
    given = flags((3, 5, 30), HELP_35)
    assert given["client-cert-auth"] == given["peer-client-cert-auth"] == "true"
    assert given["trusted-ca-file"] == given["peer-trusted-ca-file"] == "/p/ca"
    for flag in ("listen-client-urls", "advertise-client-urls", "listen-peer-urls", "initial-advertise-peer-urls"):
        assert given[flag].startswith("https://127.0.0.1:")
    assert "http://" not in " ".join(given.values())
    assert not [flag for flag in given if "unsafe" in flag]


def test_a_new_cluster_is_itself_and_an_existing_one_has_the_others_too() -> None:
    assert flags((3, 5, 30), HELP_35)["initial-cluster"] == "me=https://127.0.0.1:1002"
    joining = EtcdConfig(
        config().binary,
        name="me",
        directory=Path("/d"),
        tls=config().tls,
        peer_host="10.0.0.1",
        state="existing",
        initial_cluster=(("a", "https://10.0.0.2:1"),),
    )
    given = arguments(joining, Ports(1001, 1002), frozenset())
    assert "--initial-cluster=a=https://10.0.0.2:1,me=https://10.0.0.1:1002" in given
    assert "--initial-cluster-state=existing" in given


def given(config_: EtcdConfig, version: tuple[int, int, int] = (3, 5, 30)) -> dict[str, str]:
    known = replace(config_, binary=EtcdBinary(Path("/x/etcd"), version))
    arguments_ = arguments(known, Ports(1001, 1002), frozenset())
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments_)


def test_clients_elsewhere_come_by_the_public_address_and_our_own_by_loopback() -> None:
    shown = given(replace(config(), client_hosts=("127.0.0.1", "10.0.0.1"), peer_host="10.0.0.1"))
    assert shown["listen-client-urls"] == "https://127.0.0.1:1001,https://10.0.0.1:1001"
    assert shown["advertise-client-urls"] == "https://10.0.0.1:1001"
    assert shown["listen-peer-urls"] == shown["initial-advertise-peer-urls"] == "https://10.0.0.1:1002"
    assert shown["initial-cluster"] == "me=https://10.0.0.1:1002"


def test_one_address_is_listened_on_once() -> None:
    shown = given(replace(config(), client_hosts=("127.0.0.1", "127.0.0.1")))
    assert shown["listen-client-urls"] == "https://127.0.0.1:1001"


def test_what_is_told_may_differ_from_what_is_bound() -> None:
    everywhere = replace(config(), client_hosts=("::",), peer_host="::", advertised_host="fd00::7")
    shown = given(everywhere)
    assert (shown["listen-client-urls"], shown["listen-peer-urls"]) == ("https://[::]:1001", "https://[::]:1002")
    assert client_url(everywhere, Ports(1001, 1002)) == "https://[fd00::7]:1001" == shown["advertise-client-urls"]
    assert peer_url(everywhere, Ports(1001, 1002)) == "https://[fd00::7]:1002" == shown["initial-advertise-peer-urls"]
    assert everywhere.own_address_host == "::1"
    assert replace(config(), client_hosts=("0.0.0.0",)).own_address_host == "127.0.0.1"


def test_who_is_let_in_is_said_for_both_ports() -> None:
    members_only = replace(config(), allowed_hostname="member.test")
    for version, skip in (
        ((3, 5, 30), "experimental-peer-skip-client-san-verification"),
        ((3, 6, 1), "peer-skip-client-san-verification"),
    ):
        shown = given(members_only, version)
        assert shown["client-cert-allowed-hostname"] == shown["peer-cert-allowed-hostname"] == "member.test"
        assert shown["client-cert-auth"] == shown["peer-client-cert-auth"] == "true"
        assert shown[skip] == "true"
    assert not [flag for flag in given(config()) if "allowed" in flag or "skip" in flag]


def test_only_what_was_removed_is_removed() -> None:
    last = '{"level":"warn","msg":"server error","error":"the member has been permanently removed from the cluster"}'
    assert tells_removal(f"{last}\n{{}}\n")
    assert not tells_removal('{"level":"warn","msg":"rejected stream from remote peer because it was removed"}')


@pytest.mark.parametrize(
    ("log", "output", "expected"),
    [
        ("", "", ""),
        ('{"level":"info","msg":"x"}', "", ""),
        (
            '{"level":"fatal","msg":"discovery failed","error":"wal: crc mismatch"}\n{"level":"info","msg":"bye"}',
            "noise",
            "discovery failed: wal: crc mismatch",
        ),
        ('{"level":"error"', "flag provided but not defined: -x\n", "flag provided but not defined: -x"),
        ("", "panic: tocommit out of range\n\ngoroutine 1 [running]:\n\tmain()\n", "panic: tocommit out of range"),
        ("not json", "", ""),
    ],
)
def test_last_words(log: str, output: str, expected: str) -> None:
    assert last_words(log, output) == expected
