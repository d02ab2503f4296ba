"""Settings: precedence, origins, and what is refused and how."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from node.config import ConfigError, Settings, default_data_dir, describe, load_settings
from node.config_values import Listen, Share, is_loopback, parse_listen


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


def load(data_dir: Path, environ: dict[str, str] | None = None, **flags: Any) -> Settings:
    """As from the command line, without this machine's own file."""
    system_file = data_dir.parent / "etc.toml"
    return load_settings({"data_dir": str(data_dir), **flags}, environ or {}, system_file=system_file)


def test_defaults(data_dir: Path) -> None:
    settings = load(data_dir)
    assert settings.data_dir == data_dir
    assert settings.listen is None
    assert (settings.cpu, settings.memory_bytes) == (None, None)
    assert (settings.shares, settings.allow_mounts, settings.allow_host_network) == ((), (), False)
    assert (settings.lease_ttl_s, settings.retention_count) == (5.0, 100_000)
    assert settings.config_file is None
    assert settings.origins["cpu"] == "default"
    assert settings.origins["data_dir"] == "flag --data-dir"


def test_flag_beats_environment_beats_file_beats_default(data_dir: Path) -> None:
    file = data_dir / "node.toml"
    file.write_text('cpu = 1\nmemory = "1G"\nlease_ttl = "8s"\nretention-count = 7\n')
    settings = load(data_dir, {"PILFER_CPU": "2", "PILFER_MEMORY": "2G"}, cpu=3.0)
    assert (settings.cpu, settings.memory_bytes, settings.lease_ttl_s) == (3.0, 2 * 2**30, 8.0)
    assert settings.retention_count == 7
    origins = settings.origins
    assert origins["cpu"] == "flag --cpu"
    assert origins["memory_bytes"] == "PILFER_MEMORY"
    assert origins["lease_ttl_s"] == f"lease_ttl in {file}"
    assert origins["queue_window"] == "default"
    assert settings.config_file == file


def test_none_and_empty_mean_not_given(data_dir: Path) -> None:
    settings = load(data_dir, {"PILFER_CPU": "2", "PILFER_NAME": ""}, cpu=None, share=())
    assert settings.cpu == 2
    assert settings.origins["shares"] == "default"
    assert settings.origins["name"] == "default"


def test_false_and_zero_are_given(data_dir: Path) -> None:
    (data_dir / "node.toml").write_text("allow_host_network = true\nstop_wait = 3\n")
    settings = load(data_dir, allow_host_network=False, stop_wait=0)
    assert (settings.allow_host_network, settings.stop_wait_s) == (False, 0.0)


def test_which_file_is_read(data_dir: Path, tmp_path: Path) -> None:
    system, own, named, other = (
        tmp_path / "etc.toml",
        data_dir / "node.toml",
        tmp_path / "named.toml",
        tmp_path / "other.toml",
    )
    for number, file in enumerate((system, own, named, other), start=1):
        file.write_text(f"cpu = {number}\n")
    assert load(data_dir, {"PILFER_CONFIG": str(other)}, config=str(named)).cpu == 3
    assert load(data_dir, {"PILFER_CONFIG": str(other)}).cpu == 4
    assert load(data_dir).cpu == 2
    own.unlink()
    assert load(data_dir).cpu == 1


def test_a_file_that_was_asked_for_has_to_be_there(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flag --config.*absent\.toml"):
        load(data_dir, config=str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="PILFER_CONFIG"):
        load(data_dir, {"PILFER_CONFIG": str(tmp_path)})


def test_the_data_directory_may_come_from_the_system_file_but_not_from_its_own(data_dir: Path, tmp_path: Path) -> None:
    system = tmp_path / "etc.toml"
    system.write_text(f'data_dir = "{data_dir}"\n')
    environ = {"XDG_DATA_HOME": str(tmp_path / "none")}
    if default_data_dir(environ).joinpath("node.toml").exists():
        pytest.skip("this machine has a node.toml of its own")
    assert load_settings({}, environ, system_file=system).data_dir == data_dir
    (data_dir / "node.toml").write_text('data_dir = "/elsewhere"\n')
    with pytest.raises(ConfigError, match="own file"):
        load(data_dir)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("cpus = 2\n", "cpus"),
        ("[node]\ncpu = 2\n", "node"),
        ("cpu = \n", "not a TOML file"),
        ("lease-ttl = 5\nlease_ttl = 5\n", "twice"),
        ("cpu = true\n", "cpu in "),
        ('cpu = "two"\n', "cpu in "),
        ("name = 5\n", "name in "),
        ("share = 5\n", "share in "),
        ("retention_count = 1.5\n", "retention_count in "),
        ('lease_ttl = "1s"\n', "at least 2s"),
    ],
)
def test_a_wrong_file_names_the_key_and_the_file(data_dir: Path, content: str, named: str) -> None:
    (data_dir / "node.toml").write_text(content)
    with pytest.raises(ConfigError, match=named) as caught:
        load(data_dir)
    assert "node.toml" in str(caught.value)


def test_a_file_that_is_no_text_is_refused(data_dir: Path) -> None:
    (data_dir / "node.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load(data_dir)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu", "0"),
        ("cpu", "-1"),
        ("cpu", "nan"),
        ("cpu", "inf"),
        ("memory", "1M"),
        ("memory", "-5"),
        ("lease_ttl", "1.9s"),
        ("retention_count", "-1"),
        ("queue_window", "0"),
        ("queue_window", "many"),
        ("log_level", "loud"),
        ("insecure", "maybe"),
        ("listen", "7400"),
        ("listen", ":7400"),
        ("listen", "host:"),
        ("listen", "host:65536"),
        ("listen", "::1:7400"),
        ("listen", "host:²"),
        ("name", " "),
        ("name", "a" * 65),
        ("name", "a\x1b[31m"),
        ("etcd_quota", "1M"),
        ("share", "relative"),
        ("share", "/"),
        ("share", "//"),
        ("share", "/no/such/place:ro"),
        ("allow_mount", "/no/such/place"),
        ("uids", "100000"),
        ("uids", "0:10"),
        ("uids", "999:2"),
        ("uids", "2147483647:2"),
        ("uids", "65000:1000"),
        ("log_limit", "1K"),
        ("scratch_limit", "1K"),
    ],
)
def test_a_wrong_value_names_the_setting_and_its_origin(data_dir: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} \(PILFER_{key.upper()}\)"):
        load(data_dir, {f"PILFER_{key.upper()}": value})
    flag = "--" + key.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"{key} \(flag {flag}\)"):
        load(data_dir, None, **{key: value})


def test_an_unknown_flag_is_an_error(data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="colour"):
        load(data_dir, colour="red")


def test_shares(data_dir: Path, tmp_path: Path) -> None:
    odd = tmp_path / "with:colon"
    odd.mkdir()
    given = [f"{tmp_path}:rw", str(odd), f"{odd}:ro", f"{tmp_path}/data/../data"]
    settings = load(data_dir, share=given)
    assert settings.shares == (Share(str(tmp_path), read_only=False), Share(str(odd)), Share(str(data_dir)))
    assert load(data_dir, {"PILFER_SHARE": f"{tmp_path}:rw,{odd}"}).shares == settings.shares[:2]
    with pytest.raises(ConfigError, match="both ro and rw"):
        load(data_dir, share=[f"{tmp_path}:rw", str(tmp_path)])


@pytest.mark.parametrize("listen", ["0.0.0.0:7400", "192.0.2.1:7400", "[::]:7400", "example.org:7400"])
def test_insecure_is_refused_beyond_loopback(data_dir: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"insecure.*PILFER_INSECURE.*flag --listen"):
        load(data_dir, {"PILFER_INSECURE": "1"}, listen=listen)
    assert load(data_dir, listen=listen).insecure is False


@pytest.mark.parametrize("listen", ["127.0.0.1:7400", "localhost:0", "[::1]:7400", "127.9.9.9:1"])
def test_insecure_is_allowed_on_loopback(data_dir: Path, listen: str) -> None:
    settings = load(data_dir, listen=listen, insecure=True)
    assert settings.listen is not None
    assert settings.listen.is_loopback


def test_listen() -> None:
    assert parse_listen("[::1]:7400") == Listen("::1", 7400)
    assert str(Listen("::1", 7400)) == "[::1]:7400"
    assert str(parse_listen("host:1")) == "host:1"
    # Names that only look like loopback.
    assert not is_loopback("localhost.example.org")
    assert not is_loopback("127.0.0.1.example.org")


def test_peers(data_dir: Path) -> None:
    settings = load(data_dir, listen="10.0.0.2:7400", peers="10.0.0.1:7401, other ,[fd00::1]:7400,[fd00::2]")
    assert [str(peer) for peer in settings.peers] == [
        "10.0.0.1:7401",
        "other:7400",
        "[fd00::1]:7400",
        "[fd00::2]:7400",
    ]


@pytest.mark.parametrize("peers", ["a:0", "a:b", ":7400", "fd00::1", "7400"])
def test_what_is_no_peer(data_dir: Path, peers: str) -> None:
    with pytest.raises(ConfigError, match=r"peers \(flag --peers\)"):
        load(data_dir, listen="10.0.0.2:7400", peers=peers)


def test_peers_need_an_address_of_ones_own(data_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"peers \(PILFER_PEERS\) needs listen"):
        load(data_dir, {"PILFER_PEERS": "a:7400"})


def test_peers_are_refused_without_certificates(data_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"peers .* is refused with insecure"):
        load(data_dir, listen="127.0.0.1:7400", insecure=True, peers="a:7400")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "a:7400", ""])
def test_what_cannot_be_advertised(data_dir: Path, host: str) -> None:
    if host:
        with pytest.raises(ConfigError, match=r"advertise \(flag --advertise\)"):
            load(data_dir, listen="0.0.0.0:7400", advertise=host)
    else:
        assert load(data_dir, listen="0.0.0.0:7400", advertise=host or None).advertise is None


def test_default_data_directory() -> None:
    assert default_data_dir({}, uid=0) == Path("/var/lib/pilfer")
    assert default_data_dir({"XDG_DATA_HOME": "/x"}, uid=0) == Path("/var/lib/pilfer")
    assert default_data_dir({"XDG_DATA_HOME": "/x"}, uid=1000) == Path("/x/pilfer")
    assert default_data_dir({"XDG_DATA_HOME": "relative"}, uid=1000) == Path.home() / ".local/share/pilfer"


def test_every_setting_has_a_flag_and_every_flag_a_setting(data_dir: Path) -> None:
    from node.cli import start

    flags = {parameter.name for parameter in start.command.params}
    assert flags == {key for key, _, _ in describe(load(data_dir))} | {"config", "token"}


def test_every_setting_is_described_and_can_be_written_back(data_dir: Path, tmp_path: Path) -> None:
    """What `node config` prints is what a file may hold: nothing is lost in printing."""
    settings = load(
        data_dir,
        listen="[::1]:7400",
        advertise="example.org",
        peers=["10.0.0.1:7400", "[::2]:7401"],
        token_file="/token",
        cpu=1.5,
        memory=str(2**30 + 1),
        share=[f"{tmp_path}:rw"],
        lease_ttl="2.25s",
        retention_age="100001s",
    )
    printed = list(describe(settings))
    described = {settings_field.name for settings_field in dataclasses.fields(Settings)} - {"config_file", "origins"}
    assert len(printed) == len(described) == len(settings.origins)
    again = load_settings({key: value for key, value, _ in printed if value}, {}, system_file=tmp_path / "none")
    for name in described:
        assert getattr(again, name) == getattr(settings, name), name
