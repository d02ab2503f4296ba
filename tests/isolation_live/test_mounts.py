"""Mounts of one sandbox, and shares that all sandboxes see."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from isolation.client import SpawnerConfig
from isolation.errors import HostLacks, SandboxFailed
from isolation.spec import SCRATCH_DIR, BindMount
from tests.isolation_live.conftest import Runner, running

pytestmark = pytest.mark.isolation


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "file").write_text("content")
    return directory


async def _report(runner: Runner, *mounts: BindMount) -> tuple[str, int, str]:
    with pytest.raises(SandboxFailed) as failed:
        await runner.run("/bin/true", mounts=mounts)
    report = failed.value.report
    return report.step, report.errno, report.detail


#: Hidden, or a link of ours.
IN_VAR = ("/var/lib/service/data", "/var/tmp/in", "/var/run/in")


@pytest.mark.parametrize(
    "target",
    ["/tmp/a", "/tmp/deep/er", "/mnt", "/new-top/and/below", "/home/other", f"{SCRATCH_DIR}/in", "/root/x", *IN_VAR],
)
async def test_read_only_and_writable(runner: Runner, source: Path, target: str) -> None:
    read = BindMount(str(source), target)
    result = await runner.sh(f"cat {target}/file; echo new >{target}/new", mounts=(read,))
    assert result.stdout == "content"
    assert "Read-only file system" in result.stderr
    result = await runner.sh(f"echo new >{target}/new", mounts=(replace(read, read_only=False),))
    assert result.ended.exit_code == 0
    assert (source / "new").read_text() == "new\n"


async def test_a_file(runner: Runner, source: Path) -> None:
    for target in ("/tmp/x/one", "/other/one", "/etc/hostname"):
        result = await runner.run("cat", target, mounts=(BindMount(str(source / "file"), target),))
        assert result.stdout == "content", target


async def test_a_mount_is_not_seen_by_others(runner: Runner, source: Path) -> None:
    await runner.run("true", mounts=(BindMount(str(source), "/data"),))
    assert (await runner.run("ls", "-A", "/data")).stdout == ""


async def test_no_setuid_and_no_devices_come_in(runner: Runner, source: Path) -> None:
    result = await runner.sh("grep ' /data ' /proc/mounts", mounts=(BindMount(str(source), "/data", read_only=False),))
    options = result.stdout.split()[3].split(",")
    assert {"nosuid", "nodev"} <= set(options)


@pytest.mark.usefixtures("root")
async def test_the_unprivileged_user_is_named_where_it_may_not_write(runner: Runner, source: Path) -> None:
    source.chmod(0o755)
    result = await runner.sh("touch /data/x", mounts=(BindMount(str(source), "/data", read_only=False),))
    assert "Permission denied" in result.stderr


async def test_a_source_that_is_not_there(runner: Runner, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    step, number, detail = await _report(runner, BindMount(missing, "/data"))
    assert (step, number) == ("mount", errno.ENOENT)
    assert missing in detail


async def test_a_source_through_a_link_is_refused(runner: Runner, source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc")
    for path in (link, link / "passwd"):
        step, number, detail = await _report(runner, BindMount(str(path), "/data"))
        assert (step, number) == ("mount", errno.ELOOP)
        assert "symbolic link" in detail
    assert str(source)


async def test_a_source_of_another_kind_is_refused(runner: Runner) -> None:
    assert (await _report(runner, BindMount("/dev/null", "/data")))[:2] == ("mount", errno.EINVAL)
    assert (await _report(runner, BindMount("relative", "/data")))[:2] == ("mount", errno.EINVAL)


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/1", "/dev/x", "/sys", "/.pilfer", "/a/../etc", "relative", ""])
async def test_targets_that_are_refused(runner: Runner, source: Path, target: str) -> None:
    step, number, detail = await _report(runner, BindMount(str(source), target))
    assert (step, number) == ("mount", errno.EINVAL)
    assert repr(target) in detail


async def test_a_target_that_the_host_does_not_have(runner: Runner, source: Path) -> None:
    step, number, detail = await _report(runner, BindMount(str(source), "/usr/no-such-place"))
    assert (step, number) == ("mount", errno.ENOENT)
    assert "/usr/no-such-place" in detail
    assert (await _report(runner, BindMount(str(source), "/etc/passwd")))[:2] == ("mount", errno.ENOTDIR)


async def test_a_failed_mount_leaves_nothing(runner: Runner, source: Path) -> None:
    good = BindMount(str(source), "/data")
    for _ in range(5):
        await _report(runner, good, BindMount("/no/such", "/other"))
    assert (await runner.run("cat", "/data/file", mounts=(good,))).stdout == "content"


async def test_not_a_program_at_all(runner: Runner, source: Path) -> None:
    program = source / "program"
    program.write_text("neither a script nor a binary")
    program.chmod(0o755)
    with pytest.raises(SandboxFailed) as failed:
        await runner.run("/data/program", mounts=(BindMount(str(source), "/data"),))
    report = failed.value.report
    assert (report.step, report.errno, report.subject) == ("exec", errno.ENOEXEC, "/data/program")


async def test_shares(config: SpawnerConfig, source: Path, tmp_path: Path) -> None:
    writable = tmp_path / "writable"
    writable.mkdir()
    writable.chmod(0o777)
    # Both lie below /tmp on this machine or elsewhere: a share is at its place either way.
    shares = (
        BindMount(str(source), str(source)),
        BindMount(str(writable), str(writable), read_only=False),
        BindMount(str(source), "/shared"),
        BindMount(str(source), "/var/lib/service"),
        BindMount(str(source), "/var/tmp/shared"),
    )
    async for runner in running(replace(config, shares=shares)):
        script = (
            f"cat {source}/file /shared/file /var/lib/service/file /var/tmp/shared/file; "
            f"echo x >{writable}/x; echo x >/shared/x; echo x >{source}/x"
        )
        result = await runner.sh(script)
        assert result.stdout == "content" * 4
        assert result.stderr.count("Read-only file system") == 2
    assert (writable / "x").read_text() == "x\n"
    assert [path.name for path in source.iterdir()] == ["file"]


async def test_a_share_that_is_not_there_stops_the_start(config: SpawnerConfig) -> None:
    with pytest.raises(HostLacks, match="/no/such/share"):
        async for _ in running(replace(config, shares=(BindMount("/no/such/share", "/x"),))):
            pytest.fail("it started")


@pytest.mark.usefixtures("root")
async def test_the_nodes_own_directory_is_hidden(config: SpawnerConfig) -> None:
    own = Path("/opt/pilfer-test-own")
    own.mkdir()
    try:
        (own / "secret").write_text("x")
        async for runner in running(replace(config, hidden=(own,))):
            assert (await runner.run("ls", "-A", str(own))).stdout == ""
    finally:
        (own / "secret").unlink()
        own.rmdir()


async def test_a_host_network_that_the_node_does_not_allow(config: SpawnerConfig) -> None:
    async for runner in running(replace(config, allow_host_network=False)):
        with pytest.raises(SandboxFailed) as failed:
            await runner.run("/bin/true", host_network=True)
        assert (failed.value.report.step, failed.value.report.errno) == ("network", errno.EPERM)


@pytest.mark.usefixtures("root")
async def test_a_user_for_each(config: SpawnerConfig) -> None:
    async for runner in running(replace(config, uid_base=200_000, uid_count=2)):
        sandbox = await runner.start("sh", "-c", "id -u; exec sleep 60", says="20000")
        first = (await runner.run("id", "-u")).stdout
        second = (await runner.run("id", "-u")).stdout
        assert first == second
        other = await runner.start("sleep", "60")
        with pytest.raises(SandboxFailed) as failed:
            await runner.run("id", "-u")
        assert failed.value.report.errno == errno.EAGAIN
        for one in (sandbox, other):
            one.kill()
            await one.wait()
        assert {(await runner.run("id", "-u")).stdout for _ in range(2)} == {"200000\n", "200001\n"}
