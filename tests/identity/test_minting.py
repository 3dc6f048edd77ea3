"""New tokens have the claims of the contract, and any claims that a tester adds."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.identity.keys import KeyRing, Signer, secret_key
from cocoa_tornado.identity.minting import AdminTokenRequest, TokenRequest, admin_claims, mint, token_claims
from cocoa_tornado.rules.admin_tokens import READ, SCOPES, Operator, operator_of
from cocoa_tornado.rules.identity import CANARY_PREFIX, DeviceIdentity, TokenPolicy, check_claims, is_device_id

from .material import SECRET

NOW = 1_700_000_000.75


def test_a_new_token_is_accepted_under_the_policy_it_was_made_with() -> None:
    ring, signer = KeyRing([secret_key(SECRET, "test")]), Signer.from_secret(SECRET)
    for policy in (
        TokenPolicy(),
        TokenPolicy(audience="us"),
        TokenPolicy(issuer="", subject=""),
        TokenPolicy("i", "s"),
    ):
        token = mint(TokenRequest("d", 99, "2.0", ("a", "b")), signer, policy, NOW)
        expected = DeviceIdentity("d", 99, "2.0", ("a", "b"), int(NOW) + 86400)
        assert check_claims(ring.verify(token), policy, NOW) == expected


def test_the_claims_stand_in_the_order_of_the_contract() -> None:
    claims = token_claims(TokenRequest("d", "u", groups=("g",)), TokenPolicy(audience="us"), NOW)
    names = ["device_id", "user_id", "device_version", "groups", "iss", "sub", "aud", "iat", "exp", "jti"]
    assert list(claims) == names
    assert "groups" not in token_claims(TokenRequest("d", "u"), TokenPolicy(), NOW)


def test_times_are_whole_seconds_unless_the_lifetime_is_not() -> None:
    claims = token_claims(TokenRequest("d", 1, lifetime_s=60.0), TokenPolicy(), NOW)
    assert (claims["iat"], claims["exp"]) == (1_700_000_000, 1_700_000_060)
    assert (type(claims["iat"]), type(claims["exp"])) == (int, int)
    claims = token_claims(TokenRequest("d", 1, lifetime_s=0.5), TokenPolicy(), NOW)
    assert (claims["iat"], claims["exp"]) == (1_700_000_000.75, 1_700_000_001.25)
    assert token_claims(TokenRequest("d", 1, lifetime_s=-3600), TokenPolicy(), NOW)["exp"] == 1_699_996_400


@given(st.floats(1_600_000_000, 4_000_000_000), st.integers(1, 10**9))
@example(1_700_000_000.999, 1_500)
def test_a_token_of_the_longest_life_allowed_is_accepted(now: float, lifetime_ms: int) -> None:
    policy = TokenPolicy(lifetime_s=lifetime_ms / 1000, max_lifetime_s=lifetime_ms / 1000)
    claims = token_claims(TokenRequest("d", 1), policy, now)
    expires_at = check_claims(claims, policy, now).expires_at
    assert expires_at >= now + policy.lifetime_s - (1 if lifetime_ms % 1000 == 0 else 0.002)


def test_no_two_tokens_are_the_same() -> None:
    signer = Signer.from_secret(SECRET)
    assert mint(TokenRequest("d", 1), signer, TokenPolicy(), NOW) != mint(
        TokenRequest("d", 1), signer, TokenPolicy(), NOW
    )


def test_extra_claims_come_last_and_win() -> None:
    request = TokenRequest("d", 1, extra_claims={"iss": "other", "device_id": 5, "exp": None, "new": [1]})
    claims = token_claims(request, TokenPolicy(), NOW)
    assert (claims["iss"], claims["device_id"], claims["exp"]) == ("other", 5, None)
    assert list(claims)[-1] == "new"


@given(
    st.text().filter(lambda text: is_device_id(text) and not text.startswith(CANARY_PREFIX)),
    st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
)
def test_every_good_device_and_user_survive_the_round_trip(device_id: str, user_id: int | str) -> None:
    token = mint(TokenRequest(device_id, user_id), Signer.from_secret(SECRET), TokenPolicy(), NOW)
    ring = KeyRing([secret_key(SECRET, "test")], max_token_bytes=1 << 20)
    identity = check_claims(ring.verify(token), TokenPolicy(), NOW)
    assert (identity.device_id, identity.user_id) == (device_id, user_id)


def test_a_new_admin_token_stands_for_its_operator_for_12_hours() -> None:
    claims = admin_claims(AdminTokenRequest("ann", (READ,)), NOW)
    assert list(claims) == ["sub", "aud", "scope", "iat", "exp", "jti"]
    assert operator_of(claims, 10.0, NOW) == Operator("ann", frozenset({READ}), int(NOW) + 12 * 3600)
    assert operator_of(admin_claims(AdminTokenRequest("ann"), NOW), 10.0, NOW).scopes == frozenset(SCOPES)


def test_extra_claims_of_an_admin_token_win() -> None:
    claims = admin_claims(AdminTokenRequest("ann", lifetime_s=-60, extra_claims={"aud": "other"}), NOW)
    assert (claims["aud"], claims["exp"]) == ("other", int(NOW) - 60)
