"""What a data directory remembers of its cluster: it survives, is written when it changed, and is never half there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from node.datadir import DataDir
from node.joining import cluster_memory
from node.joining.cluster_memory import ClusterMemory, ClusterMemoryError, Contacts

CLUSTER_ID = "0190f3c0-0000-7000-8000-000000000001"
CONTACTS = Contacts(("10.0.0.1:7401", "10.0.0.2:7401"), ("10.0.0.1:7400", "10.0.0.2:7400"))


def make(directory: Path) -> ClusterMemory:
    return ClusterMemory(directory, cluster_id=CLUSTER_ID, name="web-2", is_founder=False, contacts=CONTACTS)


def get(directory: Path) -> ClusterMemory:
    found = ClusterMemory.load(directory)
    assert found is not None
    return found


def test_an_empty_directory_remembers_nothing(tmp_path: Path) -> None:
    assert ClusterMemory.load(tmp_path) is None


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    make(tmp_path).save()
    found = get(tmp_path)
    assert (found.cluster_id, found.name, found.is_founder) == (CLUSTER_ID, "web-2", False)
    assert found.contacts == CONTACTS
    assert (tmp_path / "cluster.json").stat().st_mode & 0o777 == 0o600


def test_a_name_in_any_script(tmp_path: Path) -> None:
    memory = make(tmp_path)
    memory.name = "Küche 台所"
    memory.save()
    assert get(tmp_path).name == "Küche 台所"


def test_update_writes_when_something_changed(tmp_path: Path) -> None:
    memory = make(tmp_path)
    memory.save()
    before = memory.path.stat().st_ino
    assert not memory.update(etcd_endpoints=CONTACTS.etcd_endpoints, node_addresses=CONTACTS.node_addresses)
    assert memory.path.stat().st_ino == before
    assert memory.update(node_addresses=["10.0.0.3:7400", "10.0.0.1:7400", "10.0.0.3:7400"])
    assert memory.path.stat().st_ino != before
    assert get(tmp_path).contacts == Contacts(CONTACTS.etcd_endpoints, ("10.0.0.1:7400", "10.0.0.3:7400"))


def test_nodes_in_another_order_are_no_news_but_voters_are(tmp_path: Path) -> None:
    memory = make(tmp_path)
    memory.save()
    assert not memory.update(node_addresses=CONTACTS.node_addresses[::-1])
    assert memory.update(etcd_endpoints=CONTACTS.etcd_endpoints[::-1])
    assert get(tmp_path).etcd_endpoints == CONTACTS.etcd_endpoints[::-1]


def test_all_addresses_are_never_forgotten(tmp_path: Path) -> None:
    memory = make(tmp_path)
    memory.save()
    assert not memory.update(etcd_endpoints=[], node_addresses=None)
    assert get(tmp_path).contacts == CONTACTS


def test_what_could_not_be_written_holds_and_is_written_by_the_next_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = make(tmp_path)
    memory.save()

    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cluster_memory, "write_atomic", full)
        with pytest.raises(ClusterMemoryError, match=r"cluster\.json: No space left"):
            memory.update(node_addresses=["10.0.0.9:7400"])
    assert memory.node_addresses == ("10.0.0.9:7400",)
    assert get(tmp_path).contacts == CONTACTS
    assert memory.update(node_addresses=["10.0.0.9:7400"])
    assert get(tmp_path).node_addresses == ("10.0.0.9:7400",)


_GOOD = {"cluster_id": CLUSTER_ID, "name": "a", "is_founder": True, "etcd_endpoints": [], "node_addresses": []}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b" " * (2 << 20),
        json.dumps(_GOOD).encode()[:-5],
        *(json.dumps({k: v for k, v in _GOOD.items() if k != missing}).encode() for missing in _GOOD),
        *(
            json.dumps({**_GOOD, **wrong}).encode()
            for wrong in (
                {"cluster_id": "none"},
                {"cluster_id": 7},
                {"name": ""},
                {"name": None},
                {"is_founder": "no"},
                {"etcd_endpoints": "10.0.0.1:7401"},
                {"node_addresses": [1]},
            )
        ),
    ],
)
def test_what_is_broken_is_told_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cluster.json"
    path.write_bytes(content)
    with pytest.raises(ClusterMemoryError, match=r"cluster\.json cannot be read.*restore it"):
        ClusterMemory.load(tmp_path)
    assert path.read_bytes() == content


def test_what_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").mkdir()
    with pytest.raises(ClusterMemoryError, match=r"cannot read .*cluster\.json"):
        ClusterMemory.load(tmp_path)


def test_the_data_directory_knows_the_file(tmp_path: Path) -> None:
    """A directory that others may look into is refused when it holds a stranger's file; this one is ours."""
    os.chmod(tmp_path, 0o755)  # noqa: PTH101  (as an administrator would have left it)
    make(tmp_path).save()
    with DataDir.open(tmp_path):
        assert get(tmp_path).name == "web-2"
