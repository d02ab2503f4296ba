import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from pilfer.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeView(_message.Message):
    __slots__ = ("node", "state", "role", "load", "running", "reserved", "now", "etcd_version", "last_seen", "warnings", "allowed", "held_for", "pause")
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    ETCD_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    HELD_FOR_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    node: _records_pb2.Node
    state: str
    role: str
    load: float
    running: int
    reserved: _records_pb2.Capacity
    now: _timestamp_pb2.Timestamp
    etcd_version: str
    last_seen: _timestamp_pb2.Timestamp
    warnings: _containers.RepeatedScalarFieldContainer[str]
    allowed: Allowed
    held_for: str
    pause: str
    def __init__(self, node: _Optional[_Union[_records_pb2.Node, _Mapping]] = ..., state: _Optional[str] = ..., role: _Optional[str] = ..., load: _Optional[float] = ..., running: _Optional[int] = ..., reserved: _Optional[_Union[_records_pb2.Capacity, _Mapping]] = ..., now: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etcd_version: _Optional[str] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., allowed: _Optional[_Union[Allowed, _Mapping]] = ..., held_for: _Optional[str] = ..., pause: _Optional[str] = ...) -> None: ...

class Allowed(_message.Message):
    __slots__ = ("mount_prefixes", "shares", "host_network")
    class Share(_message.Message):
        __slots__ = ("path", "read_only")
        PATH_FIELD_NUMBER: _ClassVar[int]
        READ_ONLY_FIELD_NUMBER: _ClassVar[int]
        path: str
        read_only: bool
        def __init__(self, path: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...
    MOUNT_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    HOST_NETWORK_FIELD_NUMBER: _ClassVar[int]
    mount_prefixes: _containers.RepeatedScalarFieldContainer[str]
    shares: _containers.RepeatedCompositeFieldContainer[Allowed.Share]
    host_network: bool
    def __init__(self, mount_prefixes: _Optional[_Iterable[str]] = ..., shares: _Optional[_Iterable[_Union[Allowed.Share, _Mapping]]] = ..., host_network: _Optional[bool] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeView]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeView, _Mapping]]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("node", "undo", "let_finish")
    NODE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    LET_FINISH_FIELD_NUMBER: _ClassVar[int]
    node: str
    undo: bool
    let_finish: bool
    def __init__(self, node: _Optional[str] = ..., undo: _Optional[bool] = ..., let_finish: _Optional[bool] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: NodeView
    def __init__(self, node: _Optional[_Union[NodeView, _Mapping]] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("host_id", "name")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    name: str
    def __init__(self, host_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BackupChunk(_message.Message):
    __slots__ = ("data", "size_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    size_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class WhyRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WhyResponse(_message.Message):
    __slots__ = ("task", "nodes", "summary")
    class OfNode(_message.Message):
        __slots__ = ("node_id", "name", "fits", "reasons")
        NODE_ID_FIELD_NUMBER: _ClassVar[int]
        NAME_FIELD_NUMBER: _ClassVar[int]
        FITS_FIELD_NUMBER: _ClassVar[int]
        REASONS_FIELD_NUMBER: _ClassVar[int]
        node_id: str
        name: str
        fits: bool
        reasons: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., fits: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    task: _records_pb2.Task
    nodes: _containers.RepeatedCompositeFieldContainer[WhyResponse.OfNode]
    summary: str
    def __init__(self, task: _Optional[_Union[_records_pb2.Task, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[WhyResponse.OfNode, _Mapping]]] = ..., summary: _Optional[str] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("ttl", "uses")
    TTL_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    ttl: _duration_pb2.Duration
    uses: int
    def __init__(self, ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., uses: _Optional[int] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("token", "view", "addresses")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    token: str
    view: TokenView
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token: _Optional[str] = ..., view: _Optional[_Union[TokenView, _Mapping]] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class JoinTokenContent(_message.Message):
    __slots__ = ("cluster_id", "token_id", "ca_certificate", "certificate", "key", "expires_at")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    CA_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    token_id: str
    ca_certificate: bytes
    certificate: bytes
    key: bytes
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, cluster_id: _Optional[str] = ..., token_id: _Optional[str] = ..., ca_certificate: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., key: _Optional[bytes] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TokenView(_message.Message):
    __slots__ = ("id", "created_at", "expires_at", "uses", "used", "revoked")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    id: str
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    uses: int
    used: int
    revoked: bool
    def __init__(self, id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uses: _Optional[int] = ..., used: _Optional[int] = ..., revoked: _Optional[bool] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTokensResponse(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenView]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenView, _Mapping]]] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class RevokeTokenResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: TokenView
    def __init__(self, token: _Optional[_Union[TokenView, _Mapping]] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("name", "ttl")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    name: str
    ttl: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class InviteResponse(_message.Message):
    __slots__ = ("ca_certificate", "certificate", "key", "addresses")
    CA_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ca_certificate: bytes
    certificate: bytes
    key: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ca_certificate: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., key: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "version", "token_id", "cluster_id", "host_id", "name", "is_name_given", "address", "certificate_request", "host_names", "now")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_NAME_GIVEN_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    HOST_NAMES_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    token_id: str
    cluster_id: str
    host_id: str
    name: str
    is_name_given: bool
    address: str
    certificate_request: bytes
    host_names: _containers.RepeatedScalarFieldContainer[str]
    now: _timestamp_pb2.Timestamp
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., token_id: _Optional[str] = ..., cluster_id: _Optional[str] = ..., host_id: _Optional[str] = ..., name: _Optional[str] = ..., is_name_given: _Optional[bool] = ..., address: _Optional[str] = ..., certificate_request: _Optional[bytes] = ..., host_names: _Optional[_Iterable[str]] = ..., now: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("cluster_id", "ca_certificate", "certificate", "name", "contacts")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CA_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    ca_certificate: bytes
    certificate: bytes
    name: str
    contacts: Contacts
    def __init__(self, cluster_id: _Optional[str] = ..., ca_certificate: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., name: _Optional[str] = ..., contacts: _Optional[_Union[Contacts, _Mapping]] = ...) -> None: ...

class Contacts(_message.Message):
    __slots__ = ("cluster_id", "etcd_endpoints", "node_addresses")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    ETCD_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    NODE_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    etcd_endpoints: _containers.RepeatedScalarFieldContainer[str]
    node_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cluster_id: _Optional[str] = ..., etcd_endpoints: _Optional[_Iterable[str]] = ..., node_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class ContactsRequest(_message.Message):
    __slots__ = ("protocol", "host_id")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    host_id: str
    def __init__(self, protocol: _Optional[int] = ..., host_id: _Optional[str] = ...) -> None: ...

class ContactsResponse(_message.Message):
    __slots__ = ("contacts", "living_node_id")
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    LIVING_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    contacts: Contacts
    living_node_id: str
    def __init__(self, contacts: _Optional[_Union[Contacts, _Mapping]] = ..., living_node_id: _Optional[str] = ...) -> None: ...

class SignRequest(_message.Message):
    __slots__ = ("certificate_request", "role", "common_name", "host_names", "life")
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    COMMON_NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_NAMES_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    certificate_request: bytes
    role: str
    common_name: str
    host_names: _containers.RepeatedScalarFieldContainer[str]
    life: _duration_pb2.Duration
    def __init__(self, certificate_request: _Optional[bytes] = ..., role: _Optional[str] = ..., common_name: _Optional[str] = ..., host_names: _Optional[_Iterable[str]] = ..., life: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SignResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class ShareAuthorityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShareAuthorityResponse(_message.Message):
    __slots__ = ("ca_key",)
    CA_KEY_FIELD_NUMBER: _ClassVar[int]
    ca_key: bytes
    def __init__(self, ca_key: _Optional[bytes] = ...) -> None: ...
