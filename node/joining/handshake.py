"""What a TLS handshake with a peer tells: is somebody there, and do its certificate and ours go together?

grpc answers all of it with UNAVAILABLE and a sentence of its library. A person who mistyped an address, took the token
of another cluster or has a clock in the wrong year needs to know which of these it was; so a newcomer shakes hands
with a peer by itself first. The peer's certificate is looked at, and trusted for nothing: the call that follows is
grpc's, with its own full checks.

In TLS 1.3 a server judges the client's certificate after the client is done (RFC 8446, section 4.4.2): a handshake
that succeeded says nothing about ours. A grpc server speaks first (HTTP/2 SETTINGS, RFC 9113, section 3.4), so that
its first bytes are the one answer, and the end of the connection (grpc sends no alert) is the other.

Must not do: decide what is to be done about it.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
from dataclasses import dataclass
from enum import Enum

import grpc
from cryptography import x509

from node.config_values import parse_listen
from node.trust.authority import covers, is_issued_by
from pilfer.address import NODE_DNS_NAME

#: A frozen peer accepts connections by its kernel and says nothing.
HANDSHAKE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, repr=False)
class Papers:
    """Whom to trust, and who we are; PEM. Secret."""

    ca: bytes
    certificate: bytes
    key: bytes

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


class Finding(Enum):
    FITS = "fits"
    #: No connection, or no word on it: it may be there in a moment.
    UNREACHABLE = "unreachable"
    #: Somebody is there, and it is no node.
    NOT_A_NODE = "not a node"
    #: A node, with a certificate of another authority.
    OTHER_AUTHORITY = "other authority"
    #: Its certificate is good at another time than now.
    OTHER_TIME = "other time"
    #: It ended the connection once it had seen our certificate. A node that stops at that moment looks the same.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Handshake:
    finding: Finding
    #: For people; empty where it fits.
    detail: str = ""


async def examine(address: str, papers: Papers, *, now: float, timeout_s: float = HANDSHAKE_TIMEOUT_S) -> Handshake:
    """Shakes hands with HOST:PORT. `now`: Unix seconds, for the peer's certificate. Raises ValueError for what is no
    address, ssl.SSLError for papers that cannot be used."""
    target = parse_listen(address)
    context = _context(papers)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                target.host, target.port, ssl=context, server_hostname=NODE_DNS_NAME
            )
    except TimeoutError:
        return Handshake(Finding.UNREACHABLE, f"no answer within {timeout_s:g} s")
    except ssl.SSLError as error:
        return Handshake(
            Finding.NOT_A_NODE, f"it does not speak TLS as a node does ({error.reason or error}); is it started so?"
        )
    except OSError as error:
        return Handshake(Finding.UNREACHABLE, _words_of(error))
    try:
        found: ssl.SSLObject = writer.get_extra_info("ssl_object")
        judged = _judge(found.getpeercert(binary_form=True) or b"", papers, now)
        return judged if judged.finding is not Finding.FITS else await _first_word(reader, timeout_s)
    finally:
        # Nothing was said that would need a goodbye.
        writer.transport.abort()


def _context(papers: Papers) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The certificate is judged below, with words; nothing is sent to whoever has it.
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # grpc ends a connection on which HTTP/2 was not agreed on.
    context.set_alpn_protocols(["h2"])
    # OpenSSL reads files alone; these live in memory (memfd_create(2)), since a token's key belongs on no disk.
    descriptor = os.memfd_create("papers")
    try:
        os.write(descriptor, papers.certificate + b"\n" + papers.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def _judge(certificate_der: bytes, papers: Papers, now: float) -> Handshake:
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        is_ours = is_issued_by(certificate, x509.load_pem_x509_certificate(papers.ca))
        is_node = covers(certificate, [NODE_DNS_NAME])
    except ValueError as error:
        return Handshake(Finding.NOT_A_NODE, f"its certificate cannot be read ({error})")
    if not is_node:
        return Handshake(Finding.NOT_A_NODE, "its certificate is not a node's")
    if not is_ours:
        return Handshake(Finding.OTHER_AUTHORITY, "its certificate was signed by another cluster's authority")
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    here = datetime.datetime.fromtimestamp(now, tz=datetime.UTC)
    if not start <= here < end:
        return Handshake(
            Finding.OTHER_TIME,
            f"its certificate is good from {_shown(start)} to {_shown(end)}, and the clock here says {_shown(here)}",
        )
    return Handshake(Finding.FITS)


def _shown(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ")


async def _first_word(reader: asyncio.StreamReader, timeout_s: float) -> Handshake:
    try:
        async with asyncio.timeout(timeout_s):
            first = await reader.read(1)
    except TimeoutError:
        return Handshake(Finding.UNREACHABLE, f"it shook hands and then said nothing within {timeout_s:g} s")
    except OSError as error:
        return Handshake(Finding.REFUSED, f"it broke the connection off ({_words_of(error)})")
    return Handshake(Finding.FITS) if first else Handshake(Finding.REFUSED, "it ended the connection")


def _words_of(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    # asyncio's own texts repeat the address ("Connect call failed ..."); names that are not found have no errno.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
