"""An answer's id proves which answer it was and whose; whatever is changed about it, it is refused."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.errors import ConfigError, MalformedToken, RejectedToken, TokenError
from hone.tokens import PREFIX, TOKEN_CHARS, Claims, KeyRing, parse_keys

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RING = KeyRing({1: b"k" * 32, 2: b"l" * 32}, signer=1)
uuids = st.uuids()
moments = st.integers(0, 2**32 - 1).map(lambda second: datetime.fromtimestamp(second, UTC))
claims = st.builds(Claims, uuids, uuids, uuids, uuids, moments)
SOME = Claims(UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=4), NOW + timedelta(days=30))


@given(claims)
def test_a_token_says_what_was_put_into_it_and_fits_into_128_characters(said: Claims) -> None:
    token = RING.mint(said)
    assert len(token) == TOKEN_CHARS == 124
    assert token.startswith(PREFIX)
    assert RING.verify(token, said.expires_at, said.user_id) == said


@given(st.integers(0, (TOKEN_CHARS - len(PREFIX)) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    token = bytearray(RING.mint(SOME).encode())
    token[len(PREFIX) + bit // 8] ^= 1 << bit % 8
    with pytest.raises(TokenError):
        RING.verify(token.decode("latin-1"), NOW)


@given(st.text(max_size=200))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    with pytest.raises(MalformedToken):
        RING.verify(text, NOW)
    with pytest.raises(TokenError):
        RING.verify(PREFIX + text, NOW)


def test_a_token_is_refused_one_second_after_it_expired() -> None:
    token = RING.mint(SOME)
    assert RING.verify(token, SOME.expires_at) == SOME
    with pytest.raises(RejectedToken, match="expired at 2026-03-31T12:00:00Z"):
        RING.verify(token, SOME.expires_at + timedelta(seconds=1))


def test_another_users_token_is_refused() -> None:
    with pytest.raises(RejectedToken, match="another user"):
        RING.verify(RING.mint(SOME), NOW, UUID(int=5))


def test_a_key_may_be_rotated_without_losing_the_tokens_of_the_old_one() -> None:
    old = RING.mint(SOME)
    rotated = KeyRing({2: b"l" * 32, 1: b"k" * 32}, signer=2)
    assert rotated.verify(old, NOW) == SOME
    assert rotated.mint(SOME) != old


def test_a_token_of_a_key_that_was_withdrawn_is_refused() -> None:
    with pytest.raises(RejectedToken, match="key 1"):
        KeyRing({2: b"l" * 32}, signer=2).verify(RING.mint(SOME), NOW)


def test_a_token_of_a_key_with_the_same_number_and_another_secret_is_refused() -> None:
    with pytest.raises(RejectedToken, match="signature"):
        KeyRing({1: b"x" * 32}, signer=1).verify(RING.mint(SOME), NOW)


def test_the_first_key_of_the_setting_signs() -> None:
    ring = parse_keys(f"7:{'ab' * 16}, 3:{'cd' * 16}")
    assert ring.signer == 7
    assert set(ring.keys) == {7, 3}


@pytest.mark.parametrize("text", ["", " , ", "1", "x:abcd", f"1:{'zz' * 16}", f"300:{'ab' * 16}", "1:abcd"])
def test_bad_keys_are_named_without_being_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match="token_keys") as caught:
        parse_keys(text)
    assert "abab" not in str(caught.value)
