"""`node token` and `node invite`: what is printed where, what is written, against a node with real trust."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from node.cli import connection, failures
from node.trust.authority import key_pem, new_key, request_of, sign_request, subject_of
from node.trust.join_token import decode
from node.trust.material import load_authority
from pilfer.address import CERTIFICATE_FILES
from tests.support.trusted_nodes import Lab


@dataclass
class Ran:
    code: int
    out: str
    err: str


Cli = Callable[..., Awaitable[Ran]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    async def call(*arguments: str) -> Ran:
        # The blocking client, beside the loop that serves it.
        code = await asyncio.to_thread(failures.run, arguments)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILFER_ADDRESS", f"unix:{tmp_path}/founder/node.sock")
    return Lab(tmp_path)


async def test_a_token_stands_alone_on_stdout(lab: Lab, cli: Cli) -> None:
    async with lab.serving(lab.founder()) as node:
        lab.addresses = [node.address, "a.example:7400"]
        ran = await cli("token", "create", "--ttl", "90m", "--uses", "2")
        assert ran.code == 0
        (line,) = ran.out.splitlines()
        secret = decode(line)
        assert line not in ran.err
        assert "for 1h30m, for 2 machines" in ran.err
        assert f"--peers {node.address},a.example:7400 --token-file" in ran.err
        assert secret.token_id in ran.err
        default = await cli("token", "create")
        assert "for 1h, for any number of machines" in default.err


async def test_a_token_of_a_node_that_nobody_reaches_says_so(lab: Lab, cli: Cli) -> None:
    async with lab.serving(lab.founder()):
        ran = await cli("token", "create")
        assert (ran.code, len(ran.out.splitlines())) == (0, 1)
        assert "--listen" in ran.err


async def test_tokens_are_listed_and_revoked(lab: Lab, cli: Cli) -> None:
    async with lab.serving(lab.founder()):
        ids = [decode((await cli("token", "create", *more)).out).token_id for more in ((), ("--uses", "1"))]
        revoked = await cli("token", "revoke", ids[0][:13])
        assert (revoked.code, revoked.out) == (0, f"{ids[0]}\n")
        listed = await cli("token", "list", "--json")
        rows = [json.loads(line) for line in listed.out.splitlines()]
        assert [(row["id"], row["state"], row["uses"], row["used"]) for row in rows] == [
            (ids[0], "revoked", None, 0),
            (ids[1], "good", 1, 0),
        ]
        table = await cli("token", "list")
        header, *lines = table.out.splitlines()
        assert header.split() == ["ID", "STATE", "USED", "AGE", "EXPIRES", "IN"]
        assert [line.split()[:2] for line in lines] == [[ids[0], "revoked"], [ids[1], "good"]]
        missing = await cli("token", "revoke", "ffff")
        assert missing.code == 3
        assert "node token list" in missing.err
        wrong = await cli("token", "create", "--ttl", "400d")
        assert wrong.code == 2
        assert wrong.out == ""
        assert "ttl" in wrong.err


async def test_an_invitation_is_written_for_its_holder_alone(
    lab: Lab, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.serving(lab.founder()) as node:
        lab.addresses = [node.address, "192.0.2.1:7400"]
        ran = await cli("invite", "alice", "--ttl", "2d")
        assert (ran.code, ran.out) == (0, "pilfer-alice\n")
        directory = tmp_path / "pilfer-alice"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert sorted(path.name for path in directory.iterdir()) == sorted(CERTIFICATE_FILES)
        assert {stat.S_IMODE((directory / name).stat().st_mode) for name in CERTIFICATE_FILES} == {0o600}
        holder = x509.load_pem_x509_certificate((directory / "client.crt").read_bytes())
        assert subject_of(holder).name == "alice"
        assert f"PILFER_ADDRESS={node.address},192.0.2.1:7400 PILFER_CERTS=" in ran.err
        # As it says, so it works.
        monkeypatch.setenv("PILFER_ADDRESS", f"{node.address},192.0.2.1:7400")
        monkeypatch.setenv("PILFER_CERTS", str(directory))
        assert (await cli("token", "list", "--json")).code == 0


async def test_an_invitation_is_not_written_over_another(lab: Lab, cli: Cli, tmp_path: Path) -> None:
    async with lab.serving(lab.founder()):
        directory = tmp_path / "certs"
        directory.mkdir()
        (directory / "client.key").write_text("somebody's")
        ran = await cli("invite", "alice", "--output", str(directory))
        assert (ran.code, ran.out) == (1, "")
        assert "client.key" in ran.err
        assert "--output" in ran.err
        assert (directory / "client.key").read_text() == "somebody's"
        assert [path.name for path in directory.iterdir()] == ["client.key"]
        evil = await cli("invite", "../../alice")
        assert evil.out == "pilfer--..-alice\n"
        assert (tmp_path / "pilfer--..-alice").is_dir()


async def test_a_certificate_that_is_over_is_told_as_such(
    lab: Lab, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node only ends the handshake, which looks like no node at all."""
    trust = lab.founder()
    async with lab.serving(trust) as node:
        authority = load_authority(trust.pki_dir)
        assert authority is not None
        key = new_key()
        ended = sign_request(
            authority, request_of(key), role="client", common_name="alice", life_s=60, now=time.time() - 3600
        )
        contents = (trust.ca_cert.read_bytes(), ended, key_pem(key))
        for name, content in zip(CERTIFICATE_FILES, contents, strict=True):
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(connection, "PATIENCE_S", 0.1)
        monkeypatch.setenv("PILFER_ADDRESS", node.address)
        monkeypatch.setenv("PILFER_CERTS", str(tmp_path))
        ran = await cli("token", "list")
        assert ran.code == failures.ExitCode.NO_NODE
        assert "client.crt is good from" in ran.err
        assert "node invite" in ran.err
