"""Tokens, invitations and certificates with real nodes: one founds, another joins it on the same machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from node.trust.authority import ROLE_NODE, sign_request
from node.trust.join_token import decode
from node.trust.material import load_authority, make_request
from pilfer import Client
from pilfer.address import NODE_DNS_NAME
from pilfer.v1 import tasks_pb2, tasks_pb2_grpc
from tests.support.node_process import LiveNode, live_node
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def founder() -> Iterator[LiveNode]:
    with live_node("--cpu", "1", "--memory", "64M", "--listen", f"127.0.0.1:{free_port()}") as started:
        yield started


def tcp_address(node: LiveNode) -> str:
    return node.flags[node.flags.index("--listen") + 1]


def token_of(node: LiveNode, *options: str) -> str:
    made = node.cli("token", "create", *options)
    assert made.returncode == 0, made.stderr
    assert f"--peers {tcp_address(node)}" in made.stderr
    return made.stdout.strip()


def test_an_invitation_opens_the_port_and_a_token_does_not(founder: LiveNode, tmp_path: Path) -> None:
    directory = tmp_path / "alice"
    ran = founder.cli("invite", "alice", "--output", str(directory))
    assert (ran.returncode, ran.stdout.strip()) == (0, str(directory)), ran.stderr
    with Client(tcp_address(founder), certs=directory) as client:
        assert client.wait(client.submit("true"), timeout_s=60).succeeded

    secret = decode(token_of(founder))
    credentials = grpc.ssl_channel_credentials(secret.ca_pem, secret.key_pem, secret.certificate_pem)
    named = [("grpc.ssl_target_name_override", NODE_DNS_NAME)]
    with grpc.secure_channel(tcp_address(founder), credentials, named) as channel:
        stub = tasks_pb2_grpc.TaskServiceStub(channel)
        for call in (
            lambda: stub.List(tasks_pb2.ListRequest(), timeout=30),
            lambda: stub.Submit(tasks_pb2.SubmitRequest(), timeout=30),
            lambda: list(stub.Watch(tasks_pb2.WatchRequest(), timeout=30)),
        ):
            with pytest.raises(grpc.RpcError, match="good for joining alone") as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_node_whose_certificate_ended_while_it_was_away_joins_again_as_the_same_host(
    founder: LiveNode, tmp_path: Path
) -> None:
    flags = ("--cpu", "1", "--memory", "64M", "--listen", f"127.0.0.1:{free_port()}", "--peers", tcp_address(founder))
    token_file = tmp_path / "token"
    token_file.write_text(token_of(founder, "--uses", "1"))
    with live_node(*flags, "--token-file", str(token_file)) as joined:
        pki = joined.data_dir / "pki"
        assert not (pki / "ca.key").exists() or load_authority(pki) is not None
        # The administrator's certificate comes by itself.
        wait_until_sync((pki / "client" / "client.crt").exists, 60, what="a client's certificate")
        host_id = joined.host_id
        assert joined.stop() == 0

        authority = load_authority(founder.data_dir / "pki")
        assert authority is not None
        ended = sign_request(
            authority, make_request(pki), role=ROLE_NODE, common_name=host_id, life_s=60, now=time.time() - 3600
        )
        (pki / "node.crt").write_bytes(ended)
        (pki / "ca.key").unlink(missing_ok=True)
        joined.flags = flags
        joined.begin()
        assert joined.process is not None
        assert joined.process.wait(60) == 1
        joined.end()
        assert "ended on" in joined.tail()
        assert "node token create" in joined.tail()

        # The same token: the use of the same host counts once.
        joined.start("--token-file", str(token_file))
        assert joined.host_id == host_id
        token_id = decode(token_file.read_text()).token_id
        with founder.client() as client:
            (view,) = [view for view in client.list_tokens() if view.id == token_id]
        assert (view.uses, view.used) == (1, 1)
        assert joined.stop() == 0
