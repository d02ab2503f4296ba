"""Where a client looks for a node, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilfer import InvalidAddress
from pilfer.address import Target, TcpTarget, UnixTarget, default_data_dir, find_targets


def find_one(address: str | None = None, **options: Any) -> Target:
    (target,) = find_targets(address, **options)
    return target


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    for name in ("ca.crt", "client.crt", "client.key"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_argument_then_the_environment_then_the_default() -> None:
    environ = {"PILFER_ADDRESS": "unix:/e/node.sock", "PILFER_DATA_DIR": "/d"}
    assert find_one("unix:/a/node.sock", environ=environ) == UnixTarget(Path("/a/node.sock"))
    assert find_one(environ=environ) == UnixTarget(Path("/e/node.sock"))
    del environ["PILFER_ADDRESS"]
    assert find_one(environ=environ) == UnixTarget(Path("/d/node.sock"))


def test_the_default_is_where_a_node_keeps_its_socket() -> None:
    from node.config import default_data_dir as of_the_node

    for environ in ({}, {"XDG_DATA_HOME": "/x"}, {"XDG_DATA_HOME": "relative"}):
        assert default_data_dir(environ) == of_the_node(environ)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_the_default_of_an_ordinary_user_follows_xdg() -> None:
    os.seteuid(65534)
    try:
        assert default_data_dir({"XDG_DATA_HOME": "/x"}) == Path("/x/pilfer")
        assert default_data_dir({"XDG_DATA_HOME": "x"}) == Path.home() / ".local/share/pilfer"
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("text", "path"), [("unix:/a/b", "/a/b"), ("unix:///a/b", "/a/b"), ("unix:a/b", str(Path.cwd() / "a/b"))]
)
def test_unix_addresses(text: str, path: str) -> None:
    assert find_one(text, environ={}) == UnixTarget(Path(path))


def test_tcp_needs_certificates(certs: Path, tmp_path: Path) -> None:
    assert find_one("h:7400", certs=certs, environ={}) == TcpTarget("h", 7400, certs)
    assert find_one("h:7400", environ={"PILFER_CERTS": str(certs)}) == TcpTarget("h", 7400, certs)
    (certs / "client.key").unlink()
    with pytest.raises(InvalidAddress, match=r"client\.key"):
        find_one("h:7400", certs=certs, environ={})


def test_the_certificates_of_the_default_data_directory(tmp_path: Path) -> None:
    client = tmp_path / "pki" / "client"
    client.mkdir(parents=True)
    for name in ("ca.crt", "client.crt", "client.key"):
        (client / name).touch()
    assert find_one("h:1", environ={"PILFER_DATA_DIR": str(tmp_path)}) == TcpTarget("h", 1, client)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]"])
def test_plain_on_loopback_where_asked_for(host: str) -> None:
    target = find_one(f"{host}:7400", insecure=True, environ={})
    assert isinstance(target, TcpTarget)
    assert target.certs is None
    assert str(target) == f"{host}:7400"
    assert find_one(f"{host}:7400", environ={"PILFER_INSECURE": "1"}) == target


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "0.0.0.0", "[::]", "127.0.0.1.example.org"])
def test_plain_is_refused_beyond_loopback(host: str) -> None:
    with pytest.raises(InvalidAddress, match="loopback"):
        find_one(f"{host}:7400", insecure=True, environ={})


@pytest.mark.parametrize("text", ["unix:", "h", "h:", ":1", "h:0", "h:65536", "h:x", "h:-1", "http://h:1", "h:²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidAddress):
        find_one(text, insecure=True, environ={})


def test_several_addresses_in_their_order_and_once_each(certs: Path) -> None:
    found = find_targets("unix:/a/node.sock, h:7400,[::1]:7400,h:7400", certs=certs, environ={})
    assert found == (UnixTarget(Path("/a/node.sock")), TcpTarget("h", 7400, certs), TcpTarget("::1", 7400, certs))
    environ = {"PILFER_ADDRESS": "a:1,b:2", "PILFER_CERTS": str(certs)}
    assert [str(target) for target in find_targets(environ=environ)] == ["a:1", "b:2"]


def test_a_comma_in_the_default_data_directory_separates_nothing() -> None:
    assert find_targets(environ={"PILFER_DATA_DIR": "/d,e"}) == (UnixTarget(Path("/d,e/node.sock")),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h:1,g", r"'g' \(the second of 2 in 'h:1,g'\) is no address"),
        ("h:1,", r"'' \(the second of 2 in 'h:1,'\) is no address"),
        (",h:1", r"'' \(the first of 2"),
        ("h:1,unix:,h:2", r"'unix:' \(the second of 3 in .*\) has no path"),
        ("h:1,h:2,h:3,h:x", r"'h:x' \(number 4 of 4"),
        (",", r"the first of 2"),
        ("h:1;h:2", r"'h:1;h:2' is no address"),
    ],
)
def test_the_part_that_is_wrong_is_named(certs: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidAddress, match=words):
        find_targets(text, certs=certs, environ={})


def test_plain_is_refused_for_the_one_that_is_elsewhere() -> None:
    with pytest.raises(InvalidAddress, match=r"10\.0\.0\.1:2 \(the second of 2"):
        find_targets("localhost:1,10.0.0.1:2", insecure=True, environ={})


def test_importing_a_stub_or_an_error_loads_no_grpc() -> None:
    code = """
import sys, pilfer, pilfer.v1.records_pb2
from pilfer import NotFound, TaskSpec, new_task_id
assert "grpc" not in sys.modules
from pilfer import Client
assert "grpc" in sys.modules
assert {"node", "etcd", "isolation"}.isdisjoint(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_every_name_of_the_package_is_there() -> None:
    import pilfer

    names = [name for name in dir(pilfer) if not name.startswith("_")]
    assert {"Client", "AsyncClient", "TaskSpec", "PilferError"} <= {*names}
    for name in names:
        assert getattr(pilfer, name) is not None
    with pytest.raises(AttributeError):
        pilfer.NoSuchName  # noqa: B018  (looking is the test)
