"""The text of a join token: what goes in comes out, and what was spoilt on the way is told as such."""

from __future__ import annotations

import base64
from dataclasses import replace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from node.trust.authority import found_authority, new_key, request_of, sign_request, subject_of
from node.trust.join_token import PREFIX, TEXT_MAX, BadJoinToken, JoinSecret, decode, encode, join_secret

NOW = 1_800_000_000.0
TOKEN_ID = "11111111-1111-4111-8111-111111111111"


def make() -> JoinSecret:
    authority = found_authority("lab", new_key(), NOW)
    key = new_key()
    certificate = sign_request(authority, request_of(key), role="join", common_name=TOKEN_ID, now=NOW)
    ca_pem = authority.certificate.public_bytes(serialization.Encoding.PEM)
    return join_secret(
        cluster_id="22222222-2222-4222-8222-222222222222",
        token_id=TOKEN_ID,
        ca_pem=ca_pem,
        certificate_pem=certificate,
        key=key,
        expires_at=NOW + 3600.25,
    )


SECRET = make()
TEXT = encode(SECRET)


def test_what_goes_in_comes_out() -> None:
    found = decode(TEXT)
    assert found == SECRET
    certificate = x509.load_pem_x509_certificate(found.certificate_pem)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(found.ca_pem))
    assert subject_of(certificate).name == found.token_id
    assert found.expires_at == NOW + 3600.25
    # grpc takes the pieces as they are.
    grpc.ssl_channel_credentials(found.ca_pem, found.key_pem, found.certificate_pem)


def test_it_is_one_line_that_survives_a_shell_and_a_mail() -> None:
    assert TEXT.startswith(PREFIX)
    assert all(c.isalnum() or c in "-_:" for c in TEXT)
    assert len(TEXT) < 3000
    broken = "\n".join([TEXT[:70], "  " + TEXT[70:500], TEXT[500:]])
    assert decode(f" {broken}\r\n") == SECRET


def test_it_is_shown_nowhere() -> None:
    assert "key" not in repr(SECRET)
    assert repr(SECRET.key) not in repr(SECRET)


@given(st.integers(min_value=0, max_value=len(TEXT) - 1))
def test_a_token_that_was_cut_off_is_told_as_such(length: int) -> None:
    with pytest.raises(BadJoinToken) as caught:
        decode(TEXT[:length])
    words = "is empty" if not length else "no join token" if length < len(PREFIX) else "cut off or changed"
    assert words in str(caught.value)


@given(st.integers(min_value=len(PREFIX) + 2, max_value=len(TEXT) - 2), st.sampled_from("AZaz09-_"))
def test_a_token_that_was_changed_is_told_as_such(at: int, letter: str) -> None:
    changed = TEXT[:at] + letter + TEXT[at + 1 :]
    if changed == TEXT:
        return
    with pytest.raises(BadJoinToken, match="cut off or changed"):
        decode(changed)


@pytest.mark.parametrize("text", ["hello", "pilfer-invite:abc", TEXT.removeprefix("p"), "-----BEGIN CERTIFICATE-----"])
def test_something_else_is_told_as_such_and_not_quoted(text: str) -> None:
    with pytest.raises(BadJoinToken, match=f"begins with {PREFIX}") as caught:
        decode(text)
    assert text not in str(caught.value)


def test_another_version_is_told_as_such() -> None:
    body = TEXT.removeprefix(PREFIX)
    packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    other = PREFIX + base64.urlsafe_b64encode(bytes([2]) + packed[1:]).decode()
    with pytest.raises(BadJoinToken, match="of version 2, and this program reads version 1"):
        decode(other)


def test_what_holds_no_certificates_is_refused_before_a_handshake_fails() -> None:
    for spoilt in (replace(SECRET, certificate=b"x"), replace(SECRET, ca_certificate=b""), replace(SECRET, key=b"x")):
        with pytest.raises(BadJoinToken, match="no certificates that can be read"):
            decode(encode(spoilt))


def test_a_wrong_file_is_not_read_at_length() -> None:
    with pytest.raises(BadJoinToken, match="far too long"):
        decode(PREFIX + "A" * TEXT_MAX)
