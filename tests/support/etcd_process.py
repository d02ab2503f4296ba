"""A real etcd for tests: TLS, loopback, free ports, a temporary directory.

Independent of `etcd/server.py`'s asyncio supervision: a plain subprocess with the same arguments, so that one process
can serve a whole session of tests, each with a loop of its own.

Fixtures (a plugin of tests/conftest.py): `etcd_process` is one etcd for the session, wiped before each test;
`own_etcd` makes one for a test that kills, freezes or fills it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from etcd.binary import EtcdBinary, EtcdNotFound, find_etcd, run_for_text
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.errors import StoreError
from etcd.port import Delete, Etcd, Member, Range, Txn
from etcd.ports import Ports, choose_ports
from etcd.server_flags import EtcdConfig, arguments, known_flags, peer_url
from tests.support.certificates import make_tls
from tests.support.require import require
from tests.support.wait import wait_until, wait_until_sync

#: Overrides the program: TEST_ETCD=/path/of/another/version.
SETTING = "TEST_ETCD"


def etcd_binary() -> EtcdBinary:
    """The etcd to test with; skips the test (or fails it, REQUIRE=etcd) where there is none."""
    try:
        return find_etcd(os.environ.get(SETTING))
    except EtcdNotFound as error:
        require("etcd", is_there=False, reason=str(error))
        raise


class EtcdProcess:
    """One etcd, started and stopped by the test."""

    def __init__(
        self,
        binary: EtcdBinary,
        directory: Path,
        *,
        quota_bytes: int = 1 << 30,
        name: str = "test",
        joins: EtcdProcess | None = None,
    ) -> None:
        """joins: not a cluster of its own, but one more member of this one's; call `start` with the members then."""
        self.directory = directory
        self.tls: ClientTls = joins.tls if joins else make_tls(directory / "pki")
        self.config = EtcdConfig(
            binary=binary,
            name=name,
            directory=directory / "etcd",
            tls=self.tls,
            quota_bytes=quota_bytes,
            state="existing" if joins else "new",
        )
        self.config.data_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.ports: Ports = choose_ports(
            self.config.ports_file, api_port=None, client_hosts=("127.0.0.1",), peer_host="127.0.0.1"
        )
        self._flags = known_flags(run_for_text(binary.path, "--help"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports.client}"

    @property
    def peer_url(self) -> str:
        return peer_url(self.config, self.ports)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> EtcdClient:
        """A new client; the caller closes it."""
        return EtcdClient([self.address], self.tls)

    def start(self, others: Sequence[Member] = ()) -> None:
        """others: the members before it, where it joins these."""
        if others:
            known = tuple((member.name, url) for member in others for url in member.peer_urls)
            self.config = replace(self.config, initial_cluster=known)
        with self.config.output_file.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    str(self.config.binary.path),
                    *arguments(self.config, self.ports, self._flags),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is None:
            return
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP: the connection stays, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until_sync(lambda: _state(self.pid) == "T", 5, what="etcd is stopped")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def check(self) -> None:
        """Raises AssertionError with its output when it has died."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"etcd died:\n{self.config.output_file.read_text()[-2000:]}")

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        async with self.client() as client:

            async def answers() -> bool:
                self.check()
                with contextlib.suppress(StoreError):
                    await client.range(Range(b"/"), timeout_s=1.0)
                    return True
                return False

            await wait_until(answers, timeout_s, what="etcd answers")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def wipe(client: Etcd) -> None:
    """Deletes all keys; after a test with a hundred thousand tasks that takes seconds."""
    await client.txn(Txn((), (Delete(b"\0", b"\0"),)), timeout_s=60.0)


@contextlib.contextmanager
def etcd_running(**options: int | str) -> Iterator[EtcdProcess]:
    """An etcd of its own; stopped and removed at the end, whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="pilfer-etcd-"))
    process = EtcdProcess(etcd_binary(), directory, **options)  # type: ignore[arg-type]  # options of EtcdProcess
    try:
        process.start()
        yield process
    finally:
        process.kill()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def session_etcd() -> Iterator[EtcdProcess]:
    """One etcd for all tests of a session; take it by `etcd_process`, which empties it."""
    with etcd_running() as process:
        yield process


@pytest_asyncio.fixture
async def etcd_process(session_etcd: EtcdProcess) -> EtcdProcess:
    """The session's etcd, empty. Not to be killed, frozen or filled."""
    session_etcd.check()
    await session_etcd.wait_ready()
    async with session_etcd.client() as client:
        await wipe(client)
    return session_etcd


@pytest_asyncio.fixture
async def etcd_client(etcd_process: EtcdProcess) -> AsyncIterator[EtcdClient]:
    """A client of the session's etcd."""
    async with etcd_process.client() as client:
        yield client


@pytest_asyncio.fixture
async def own_etcd() -> AsyncIterator[EtcdProcess]:
    """An etcd of this test's own, to kill, freeze or fill."""
    with etcd_running() as process:
        await process.wait_ready()
        yield process
