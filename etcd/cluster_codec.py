"""The records below `/cluster/` as protobuf: hosts, drains, removals, join tokens, claims on names.

As `etcd/codec.py` for tasks and nodes. What cannot be read raises RecordCorrupt.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from etcd import keys
from etcd.codec import capacity_from_proto, capacity_to_proto, get_time, set_time
from etcd.errors import RecordCorrupt
from node.core import model
from node.core.newcomer import NameClaim
from pilfer.v1 import records_pb2 as pb

_Message = TypeVar("_Message", bound=Message)


def encode_host(host: model.Host) -> bytes:
    message = pb.Host(
        id=host.id,
        name=host.name,
        address=host.address,
        node_id=host.node_id,
        version=host.version,
        capacity=capacity_to_proto(host.capacity),
    )
    set_time(message.last_seen, host.last_seen)
    return message.SerializeToString()


def decode_host(key: bytes, value: bytes) -> model.Host:
    message = _parse(pb.Host, key, value)
    if message.id != keys.parse_cluster_id(key):
        raise RecordCorrupt(f"{key!r} holds host {message.id}")
    return model.Host(
        id=message.id,
        name=message.name,
        address=message.address,
        node_id=message.node_id,
        version=message.version,
        capacity=capacity_from_proto(message.capacity),
        last_seen=get_time(message.last_seen),
    )


def encode_drain(drain: model.Drain) -> bytes:
    message = pb.Drain(let_finish=drain.let_finish)
    set_time(message.since, drain.since)
    return message.SerializeToString()


def decode_drain(key: bytes, value: bytes) -> model.Drain:
    message = _parse(pb.Drain, key, value)
    return model.Drain(since=get_time(message.since), let_finish=message.let_finish)


def encode_removal(removal: model.Removal) -> bytes:
    message = pb.Removal(name=removal.name)
    set_time(message.at, removal.at)
    return message.SerializeToString()


def decode_removal(key: bytes, value: bytes) -> model.Removal:
    message = _parse(pb.Removal, key, value)
    return model.Removal(name=message.name, at=get_time(message.at))


def encode_name_claim(claim: NameClaim) -> bytes:
    message = pb.NameClaim(host_id=claim.host_id)
    set_time(message.at, claim.at)
    return message.SerializeToString()


def decode_name_claim(key: bytes, value: bytes) -> NameClaim:
    message = _parse(pb.NameClaim, key, value)
    return NameClaim(host_id=message.host_id, at=get_time(message.at))


def encode_token(token: model.JoinToken) -> bytes:
    message = pb.JoinToken(id=token.id, uses=token.uses, used_by=token.used_by, revoked=token.revoked)
    set_time(message.created_at, token.created_at)
    set_time(message.expires_at, token.expires_at)
    return message.SerializeToString()


def decode_token(key: bytes, value: bytes) -> model.JoinToken:
    message = _parse(pb.JoinToken, key, value)
    if message.id != keys.parse_cluster_id(key):
        raise RecordCorrupt(f"{key!r} holds token {message.id}")
    return model.JoinToken(
        id=message.id,
        created_at=get_time(message.created_at),
        expires_at=get_time(message.expires_at),
        uses=message.uses,
        used_by=tuple(message.used_by),
        revoked=message.revoked,
    )


def _parse(kind: type[_Message], key: bytes, value: bytes) -> _Message:
    try:
        return kind.FromString(value)
    except DecodeError as error:
        raise RecordCorrupt(f"{key!r} cannot be read") from error
