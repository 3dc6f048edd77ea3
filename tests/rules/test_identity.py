"""Where a token is found, and what its claims must say (contract section 1)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import IdentityError, InvalidClaims, InvalidToken, MissingToken
from cocoa_tornado.rules.identity import (
    DeviceIdentity,
    FoundToken,
    TokenPolicy,
    check_claims,
    find_token,
    is_device_id,
)

NOW = 1_700_000_000.0
GOOD: dict[str, object] = {
    "device_id": "12312",
    "user_id": 99,
    "device_version": "1.0.0",
    "groups": ["kitchen"],
    "iss": "cocoa-fruit-agentic",
    "sub": "audio-streaming",
    "iat": int(NOW),
    "nbf": int(NOW),
    "exp": int(NOW) + 60,
    "jti": "a",
}
ABSENT = object()


def claims(**changes: object) -> dict[str, object]:
    """Valid claims with some changed or removed."""
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not ABSENT}


def refusal(claims: dict[str, Any], policy: TokenPolicy | None = None) -> tuple[type[IdentityError], str]:
    with pytest.raises(IdentityError) as caught:
        check_claims(claims, policy or TokenPolicy(), NOW)
    return type(caught.value), caught.value.reason


def accepts(claims: dict[str, Any], policy: TokenPolicy | None = None) -> bool:
    return isinstance(check_claims(claims, policy or TokenPolicy(), NOW), DeviceIdentity)


# --- Claims --------------------------------------------------------------------------------------------------------


def test_good_claims_make_an_identity() -> None:
    assert check_claims(claims(), TokenPolicy(), NOW) == DeviceIdentity("12312", 99, "1.0.0", ("kitchen",), NOW + 60)


def test_only_the_device_and_the_expiry_are_required() -> None:
    minimal = {"device_id": "d", "user_id": "u", "device_version": "", "exp": NOW + 0.5}
    assert check_claims(minimal, TokenPolicy(), NOW) == DeviceIdentity("d", "u", "", (), NOW + 0.5)


@pytest.mark.parametrize("user_id", [0, -1, 10**100, "", "99", "ü"])
def test_the_user_id_is_kept_as_it_came(user_id: int | str) -> None:
    kept = check_claims(claims(user_id=user_id), TokenPolicy(), NOW).user_id
    assert kept == user_id
    assert type(kept) is type(user_id)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "device_id",
            [ABSENT, None, "", 5, True, ["d"], "a\nb", "a\x00", "\x7f", "\x85", "\ud800", "x" * 129, "é" * 65],
        ),
        ("user_id", [ABSENT, None, 1.0, True, False, [], {}, "\udc00"]),
        ("device_version", [ABSENT, None, 1, 1.0, [], "\ud83d"]),
        (
            "groups",
            [None, "kitchen", {}, [1], ["a", None], ["\ud800"], [""], ["a\nb"], ["x" * 129], ["é" * 65], ["a"] * 65],
        ),
        ("exp", [ABSENT, None, "1700000060", True, [], float("inf"), float("nan"), 10**400]),
        ("nbf", [None, "0", False, float("inf")]),
        ("iat", [None, "0", True, float("-inf")]),
        ("jti", [None, 5, []]),
    ],
)
def test_a_missing_or_mistyped_claim_is_named(name: str, values: list[object]) -> None:
    for value in values:
        assert refusal(claims(**{name: value})) == (InvalidClaims, name), value


@pytest.mark.parametrize("device_id", ["a", "x" * 128, "é" * 64, "😀" * 32, " ", "a b", "ü-1:2/3", "\xa0"])
def test_a_device_id_is_1_to_128_bytes_without_control_characters(device_id: str) -> None:
    assert is_device_id(device_id)
    assert check_claims(claims(device_id=device_id), TokenPolicy(), NOW).device_id == device_id


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"exp": NOW - 10}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": -1e300}, "expired"),
        ({"nbf": NOW + 10.1}, "not_yet"),
        ({"iat": NOW + 10.1}, "not_yet"),
    ],
)
def test_a_token_outside_its_time_is_invalid(times: dict[str, object], reason: str) -> None:
    assert refusal(claims(**times)) == (InvalidToken, reason)


@pytest.mark.parametrize("times", [{"exp": NOW - 9.9}, {"nbf": NOW + 10}, {"iat": NOW + 10}])
def test_the_leeway_forgives_a_clock_that_is_a_little_off(times: dict[str, object]) -> None:
    assert accepts(claims(**times))


def test_without_leeway_a_token_ends_at_its_expiry() -> None:
    assert refusal(claims(exp=NOW), TokenPolicy(leeway_s=0)) == (InvalidToken, "expired")


def test_a_token_has_up_to_64_groups_of_128_bytes() -> None:
    groups = ["é" * 64, *map(str, range(63))]
    assert check_claims(claims(groups=groups), TokenPolicy(), NOW).groups == tuple(groups)


@pytest.mark.parametrize("device_id", ["cocoa-canary-", "cocoa-canary-gateway-1/0"])
def test_no_token_names_one_of_the_gateways_own_canaries(device_id: str) -> None:
    assert refusal(claims(device_id=device_id)) == (InvalidClaims, "device_id")
    assert accepts(claims(device_id="cocoa-canary"))


@pytest.mark.parametrize("audience", ["cocoa-admin", ["cocoa-admin"], ["gateway", "cocoa-admin"]])
@pytest.mark.parametrize("expected", ["", "gateway", "cocoa-admin"])
def test_an_admin_token_is_never_a_devices(audience: object, expected: str) -> None:
    assert refusal(claims(aud=audience), TokenPolicy(audience=expected)) == (InvalidClaims, "audience")


@pytest.mark.parametrize("year_9999", [253_402_300_799, 1e18])
def test_a_token_that_lives_longer_than_the_policy_allows_is_refused(year_9999: float) -> None:
    day = TokenPolicy(max_lifetime_s=86_400)
    assert accepts(claims(iat=NOW - 1000, exp=NOW + 85_400), day)
    assert refusal(claims(iat=NOW - 1000, exp=NOW + 85_401), day) == (InvalidClaims, "lifetime")
    assert refusal(claims(exp=year_9999), day) == (InvalidClaims, "lifetime")
    assert accepts(claims(exp=year_9999))


def test_the_lifetime_of_a_token_that_does_not_say_when_it_was_made_counts_from_now() -> None:
    day = TokenPolicy(max_lifetime_s=86_400)
    assert accepts(claims(iat=ABSENT, exp=NOW + 86_410), day)
    assert refusal(claims(iat=ABSENT, exp=NOW + 86_411), day) == (InvalidClaims, "lifetime")


@pytest.mark.parametrize(("name", "reason"), [("iss", "issuer"), ("sub", "subject")])
def test_issuer_and_subject_must_be_the_policys_where_they_are_present(name: str, reason: str) -> None:
    anyone = TokenPolicy(issuer="", subject="")
    assert refusal(claims(**{name: "other"})) == (InvalidClaims, reason)
    assert accepts(claims(**{name: ABSENT}))
    assert accepts(claims(**{name: "other"}), anyone)
    assert refusal(claims(**{name: 5}), anyone) == (InvalidClaims, reason)


def test_the_audience_must_be_ours_or_nobodys() -> None:
    ours = TokenPolicy(audience="gateway")
    assert accepts(claims(aud="gateway"), ours)
    assert accepts(claims(aud=["other", "gateway"]), ours)
    for audience in (ABSENT, "other", [], ["other"], 5, ["gateway", 5], None):
        assert refusal(claims(aud=audience), ours) == (InvalidClaims, "audience"), audience
    for audience in ("gateway", ["gateway"], [], "", None):
        assert refusal(claims(aud=audience)) == (InvalidClaims, "audience"), audience


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
any_claims = st.dictionaries(st.sampled_from([*GOOD, "aud", "other"]), json_values)


@given(any_claims, st.booleans())
def test_any_claims_are_accepted_by_the_contract_or_refused_with_a_word(odd: dict[str, Any], mostly_good: bool) -> None:
    given_claims = {**GOOD, **odd} if mostly_good else odd
    try:
        identity = check_claims(given_claims, TokenPolicy(), NOW)
    except IdentityError as refused:
        reason = refused.reason
        identity = None
    if identity is None:
        assert reason.replace("_", "").isalpha()
        return
    assert len(identity.groups) <= 64
    for name in (identity.device_id, *identity.groups):
        assert 0 < len(name.encode()) <= 128
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
    assert type(identity.user_id) in (int, str)
    assert identity.user_id == given_claims["user_id"]
    assert NOW < identity.expires_at + 10 < float("inf")
    json.dumps([identity.user_id, identity.device_version, identity.groups], ensure_ascii=False).encode()


@given(st.text(max_size=140))
def test_a_device_id_can_always_be_sent(text: str) -> None:
    printable = all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in text)
    size = len(text.encode("utf-8", "surrogatepass"))
    surrogates = any(0xD800 <= ord(c) < 0xE000 for c in text)
    assert is_device_id(text) == (printable and 0 < size <= 128 and not surrogates)


# --- Finding the token ---------------------------------------------------------------------------------------------


def test_the_query_comes_before_the_header_and_the_header_before_the_subprotocol() -> None:
    assert find_token(["q"], "Bearer a", "bearer, s") == FoundToken("q", "query")
    assert find_token([], "Bearer a", "bearer, s") == FoundToken("a", "authorization")
    assert find_token([], None, "bearer, s") == FoundToken("s", "subprotocol", "bearer")


def test_an_empty_value_counts_as_absent() -> None:
    assert find_token(["", "q"], None, None) == FoundToken("q", "query")
    assert find_token([""], "Bearer a", None).source == "authorization"
    assert find_token([""], "Bearer ", "bearer,s").source == "subprotocol"


@pytest.mark.parametrize(
    ("query", "authorization", "subprotocols"),
    [
        ([], None, None),
        ([""], "", ""),
        ([], "Bearer", "bearer"),
        ([], "Basic dXNlcjpwdw==", "chat, bearer"),
        ([], "a.b.c", "chat, superchat"),
        ([], None, "bearer, "),
    ],
)
def test_no_token_is_missing(query: list[str], authorization: str | None, subprotocols: str | None) -> None:
    with pytest.raises(MissingToken):
        find_token(query, authorization, subprotocols)


@pytest.mark.parametrize("header", ["Bearer t", "bearer t", "BEARER  t", " Bearer t "])
def test_the_scheme_is_read_in_any_case(header: str) -> None:
    assert find_token([], header, None).token == "t"


@pytest.mark.parametrize(
    ("header", "selected"),
    [("bearer, t", "bearer"), ("chat,Bearer,t,other", "Bearer"), (" BEARER ,, t", "BEARER")],
)
def test_the_pair_is_found_among_other_subprotocols_and_selected_as_spelled(header: str, selected: str) -> None:
    assert find_token([], None, header) == FoundToken("t", "subprotocol", selected)


def test_query_tokens_that_differ_are_ambiguous_and_equal_ones_are_not() -> None:
    assert find_token(["t", "t"], None, None).token == "t"
    with pytest.raises(InvalidToken) as caught:
        find_token(["t", "u"], None, None)
    assert caught.value.reason == "ambiguous"


def test_a_found_token_does_not_show_in_a_repr() -> None:
    assert "top-secret" not in repr(find_token(["top-secret"], None, None))


@given(st.lists(st.text()), st.none() | st.text(), st.none() | st.text())
def test_no_input_raises_anything_but_an_identity_error(
    query: list[str], authorization: str | None, subprotocols: str | None
) -> None:
    try:
        found = find_token(query, authorization, subprotocols)
    except IdentityError:
        return
    assert found.token
    assert (found.subprotocol is not None) == (found.source == "subprotocol")
