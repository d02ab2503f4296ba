"""The text of a join token: everything that a newcomer needs to ask to join, in one line to copy.

    pilfer-join:BASE64URL( version (1 byte) | checksum (8 bytes) | JoinTokenContent )

The content (`protos/pilfer/v1/nodes.proto`) holds the authority's certificate, so that the newcomer knows its cluster
from any other, and a certificate and key of the role "join", which are good for the Join call alone. How often and
until when it may be used stands in etcd (`node/trust/tokens.py`). The checksum (of SHA-256) is against copies that were
cut off or changed, not against anybody: who has the token has the key. White space is left out when it is read, since
mails and terminals break long lines.

The text and the key are secret: `repr` hides the key, errors never quote the text, and nothing here is logged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from etcd.codec import get_time, set_time
from pilfer.v1 import nodes_pb2

PREFIX: Final = "pilfer-join:"
VERSION: Final = 1
_CHECKSUM_BYTES: Final = 8
#: Far beyond any real one (about 1.6 KB): a wrong file is not read at length.
TEXT_MAX: Final = 64 * 1024

_HOW: Final = "give the whole line that node token create printed"


class BadJoinToken(ValueError):  # noqa: N818  (named after what is so, as in the conventions)
    """The text is no join token that can be used here; it says what to do, and does not quote the text."""


@dataclass(frozen=True, slots=True)
class JoinSecret:
    """What a join token holds."""

    cluster_id: str
    token_id: str
    #: X.509, DER.
    ca_certificate: bytes
    certificate: bytes
    #: PKCS 8, DER.
    key: bytes = field(repr=False)
    #: Unix seconds; by the clock of the node that made it.
    expires_at: float

    @property
    def ca_pem(self) -> bytes:
        return x509.load_der_x509_certificate(self.ca_certificate).public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_pem(self) -> bytes:
        return x509.load_der_x509_certificate(self.certificate).public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        key = serialization.load_der_private_key(self.key, password=None)
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def join_secret(
    *,
    cluster_id: str,
    token_id: str,
    ca_pem: bytes,
    certificate_pem: bytes,
    key: ec.EllipticCurvePrivateKey,
    expires_at: float,
) -> JoinSecret:
    """The content from what a signer gives."""
    return JoinSecret(
        cluster_id=cluster_id,
        token_id=token_id,
        ca_certificate=x509.load_pem_x509_certificate(ca_pem).public_bytes(serialization.Encoding.DER),
        certificate=x509.load_pem_x509_certificate(certificate_pem).public_bytes(serialization.Encoding.DER),
        key=key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        expires_at=expires_at,
    )


def encode(secret: JoinSecret) -> str:
    """The line to copy."""
    message = nodes_pb2.JoinTokenContent(
        cluster_id=secret.cluster_id,
        token_id=secret.token_id,
        ca_certificate=secret.ca_certificate,
        certificate=secret.certificate,
        key=secret.key,
    )
    set_time(message.expires_at, secret.expires_at)
    content = message.SerializeToString()
    packed = bytes([VERSION]) + _checksum(content) + content
    return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: str) -> JoinSecret:
    """What the line holds. Raises BadJoinToken. Whether its time is over is not looked at: that is the cluster's to
    say, by its own clock."""
    line = "".join(text.split())
    if not line:
        raise BadJoinToken(f"the join token is empty: {_HOW}")
    if not line.startswith(PREFIX):
        raise BadJoinToken(f"this is no join token (one begins with {PREFIX}): {_HOW}")
    if len(line) > TEXT_MAX:
        raise BadJoinToken(f"the join token is far too long: {_HOW} and nothing else")
    body = line.removeprefix(PREFIX)
    try:
        packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadJoinToken(f"the join token was cut off or changed in copying: {_HOW}") from None
    if packed and packed[0] != VERSION:
        raise BadJoinToken(
            f"the join token is of version {packed[0]}, and this program reads version {VERSION}: run the same "
            "version of Pilfer here as on the node that made it"
        )
    checksum, content = packed[1 : 1 + _CHECKSUM_BYTES], packed[1 + _CHECKSUM_BYTES :]
    if not content or checksum != _checksum(content):
        raise BadJoinToken(f"the join token was cut off or changed in copying: {_HOW}")
    return _parsed(content)


def _parsed(content: bytes) -> JoinSecret:
    try:
        message = nodes_pb2.JoinTokenContent.FromString(content)
        secret = JoinSecret(
            cluster_id=message.cluster_id,
            token_id=message.token_id,
            ca_certificate=message.ca_certificate,
            certificate=message.certificate,
            key=message.key,
            expires_at=get_time(message.expires_at),
        )
        # What cannot be used is found out here, and not in a handshake that says nothing.
        _ = secret.ca_pem, secret.certificate_pem, secret.key_pem
    except (DecodeError, ValueError, TypeError):
        raise BadJoinToken(f"the join token holds no certificates that can be read: {_HOW}") from None
    return secret


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]
