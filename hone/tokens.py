"""Feedback tokens: an answer's id is itself the signed proof of which answer it was and whose.

Nothing is looked up and nothing can be forged: `chatcmpl-` and the base64url of
`version 1 | key id 1 | response 16 | conversation 16 | turn 16 | user 16 | expiry 4 | MAC 16`,
where the MAC is BLAKE2b-128 keyed with the key that `key id` names, over everything before it.
The arm that answered is not in it: raters stay blind.
"""

import binascii
import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from hone.errors import ConfigError, MalformedToken, RejectedToken
from hone.ids import uuid_of

PREFIX = "chatcmpl-"
VERSION = 1
MAC_BYTES = 16
_BODY = struct.Struct(">BB16s16s16s16sI")
TOKEN_CHARS = len(PREFIX) + -(-(_BODY.size + MAC_BYTES) * 4 // 3)
"""124: below the 128 characters that OpenAI clients are known to keep."""
MIN_KEY_BYTES = 16
_TO_URL = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD = bytes.maketrans(b"-_+/", b"+/!!")
"""base64url to base64; the characters of the latter are no base64url and become what is none either."""
_PADDING = b"=" * (-(TOKEN_CHARS - len(PREFIX)) % 4)
_REMEDY = "send back the `id` of the answer unchanged"


class Claims(msgspec.Struct, frozen=True):
    """What a token says: ids as stored, and the second (UTC) after which it is worth nothing."""

    response_id: UUID
    conversation_id: UUID
    turn_id: UUID
    user_id: UUID
    expires_at: datetime


@dataclass(frozen=True)
class KeyRing:
    """The keys that are live: `signer` names the one that signs, all of them verify."""

    keys: Mapping[int, bytes]
    signer: int

    def mint(self, claims: Claims) -> str:
        """Return the token of these claims; fractions of a second of the expiry are dropped."""
        body = _BODY.pack(
            VERSION,
            self.signer,
            claims.response_id.bytes,
            claims.conversation_id.bytes,
            claims.turn_id.bytes,
            claims.user_id.bytes,
            int(claims.expires_at.timestamp()),
        )
        signed = binascii.b2a_base64(body + _mac(self.keys[self.signer], body), newline=False)
        return PREFIX + signed.translate(_TO_URL).rstrip(b"=").decode()

    def verify(self, token: str, now: datetime, user: UUID | None = None) -> Claims:
        """Return what the token says; with `user`, only if it was given to that user.

        Raises:
            MalformedToken: it does not have the shape of a token.
            RejectedToken: it is forged, expired, signed with a key that is no longer live, or another user's.
        """
        kid, body, mac = _split(token)
        key = self.keys.get(kid)
        if key is None:
            raise RejectedToken(f"the id was signed with key {kid}, which is not live any more: ask the model again")
        if not hmac.compare_digest(mac, _mac(key, body)):
            raise RejectedToken(f"the id's signature is wrong: {_REMEDY}")
        claims = _claims(body)
        if claims.expires_at < now:
            raise RejectedToken(f"the id expired at {claims.expires_at:%Y-%m-%dT%H:%M:%SZ}: feedback came too late")
        if user is not None and user != claims.user_id:
            raise RejectedToken("the answer was given to another user: send the X-User-Id that asked for it")
        return claims


def parse_keys(text: str) -> KeyRing:
    """Return the key ring that `kid:hex,kid:hex,...` describes (`HONE_TOKEN_KEYS`); the first key signs.

    Raises:
        ConfigError: it is empty, not of that form, or a key is too short. No key is quoted.
    """
    keys: dict[int, bytes] = {}
    for position, item in enumerate(part.strip() for part in text.split(",") if part.strip()):
        kid, _, secret = item.partition(":")
        try:
            keys[int(kid)] = bytes.fromhex(secret)
        except ValueError:
            raise ConfigError(f"token_keys: item {position + 1} is not `kid:hex` with a decimal kid") from None
        if not 0 <= int(kid) <= 255 or len(keys[int(kid)]) < MIN_KEY_BYTES:
            raise ConfigError(f"token_keys: key {kid} needs a kid from 0 to 255 and {MIN_KEY_BYTES} bytes or more")
    if not keys:
        raise ConfigError("token_keys is empty: set HONE_TOKEN_KEYS=1:$(openssl rand -hex 32)")
    return KeyRing(keys, next(iter(keys)))


def peek(token: str) -> Claims:
    """Return what a token says, without proof: for who holds no key and trusts where the token came from.

    Raises:
        MalformedToken: it does not have the shape of a token.
    """
    return _claims(_split(token)[1])


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=key[:64], digest_size=MAC_BYTES, person=b"hone-token").digest()


def _split(token: str) -> tuple[int, bytes, bytes]:
    """Return (key id, signed body, MAC). Only the one canonical spelling of the bytes is accepted."""
    if len(token) != TOKEN_CHARS or not token.startswith(PREFIX):
        raise MalformedToken(f"{token[:160]!r} is not an id of an answer of this gateway: {_REMEDY}")
    try:
        text = token[len(PREFIX) :].encode("ascii").translate(_TO_STANDARD)
        data = binascii.a2b_base64(text + _PADDING, strict_mode=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are
        raise MalformedToken(f"the id is not base64url: {_REMEDY}") from None
    if data[0] != VERSION or binascii.b2a_base64(data, newline=False) != text + _PADDING:
        raise MalformedToken(f"the id is not a version {VERSION} id: {_REMEDY}")
    return data[1], data[:-MAC_BYTES], data[-MAC_BYTES:]


def _claims(body: bytes) -> Claims:
    _, _, response, conversation, turn, user, expiry = _BODY.unpack(body)
    expires_at = datetime.fromtimestamp(expiry, UTC)
    return Claims(uuid_of(response), uuid_of(conversation), uuid_of(turn), uuid_of(user), expires_at)
