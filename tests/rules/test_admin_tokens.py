"""What an admin token must say, and what it permits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import IdentityError, InvalidClaims, InvalidToken
from cocoa_tornado.rules.admin_tokens import READ, SCOPES, TEXT, WRITE, Operator, operator_of
from cocoa_tornado.rules.identity import TokenPolicy, check_claims

NOW = 1_700_000_000.0
CLAIMS = {"sub": "ann", "aud": "cocoa-admin", "exp": NOW + 60, "scope": [READ]}
DEVICE = {"device_id": "doll", "user_id": 99, "device_version": "1.0.0", "exp": NOW + 60}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_a_token_stands_for_its_subject_with_its_scopes() -> None:
    assert operator_of(CLAIMS, 10, NOW) == Operator("ann", frozenset({READ}), NOW + 60)
    assert operator_of(CLAIMS | {"aud": ["other", "cocoa-admin"]}, 10, NOW).subject == "ann"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ([READ, WRITE, TEXT], {READ, WRITE, TEXT}),
        ("admin:read admin:text", {READ, TEXT}),
        ("admin:write", {WRITE}),
        ([READ, READ, "profile"], {READ}),
        ("openid admin:read", {READ}),
        ("", set()),
        ([], set()),
        ("admin:read,admin:write", set()),
        (["admin:read admin:write"], set()),
        (["ADMIN:READ"], set()),
        ("admin:*", set()),
    ],
)
def test_the_scopes_are_an_array_or_words_of_one_string(scope: object, expected: set[str]) -> None:
    assert operator_of(CLAIMS | {"scope": scope}, 10, NOW).scopes == expected


def test_a_token_without_scopes_permits_nothing() -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != "scope"}
    assert operator_of(claims, 10, NOW).scopes == frozenset()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"aud": "cocoa-fruit"}, "audience"),
        ({"aud": "cocoa-admin "}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": ["cocoa-admin", 5]}, "audience"),
        ({"aud": {"cocoa-admin": 1}}, "audience"),
        ({"aud": None}, "audience"),
        ({"sub": ""}, "subject"),
        ({"sub": None}, "subject"),
        ({"sub": 5}, "subject"),
        ({"sub": "\ud800"}, "subject"),
        ({"scope": None}, "scope"),
        ({"scope": 5}, "scope"),
        ({"scope": [READ, 5]}, "scope"),
        ({"scope": {READ: True}}, "scope"),
        ({"exp": None}, "exp"),
        ({"exp": "tomorrow"}, "exp"),
        ({"exp": float("inf")}, "exp"),
        ({"nbf": "now"}, "nbf"),
    ],
)
def test_a_claim_that_is_missing_or_mistyped_is_named(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidClaims) as caught:
        operator_of(CLAIMS | changed, 10, NOW)
    assert caught.value.reason == reason


def test_what_is_required_may_not_be_absent() -> None:
    for name in ("aud", "sub", "exp"):
        with pytest.raises(InvalidClaims):
            operator_of({key: value for key, value in CLAIMS.items() if key != name}, 10, NOW)


def test_times_are_judged_with_the_leeway() -> None:
    assert operator_of(CLAIMS, 10, NOW + 69).expires_at == NOW + 60
    with pytest.raises(InvalidToken, match="expired"):
        operator_of(CLAIMS, 10, NOW + 70)
    with pytest.raises(InvalidToken, match="not_yet"):
        operator_of(CLAIMS | {"nbf": NOW + 11}, 10, NOW)


@pytest.mark.parametrize("policy", [TokenPolicy(), TokenPolicy(audience="us"), TokenPolicy(issuer="", subject="")])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "aud": st.sampled_from(["cocoa-admin", "us", ["us", "cocoa-admin"], ["cocoa-admin"], ["us"], [], None]),
            "sub": st.sampled_from(["audio-streaming", "ann", "", 5]),
            "scope": st.sampled_from([list(SCOPES), "admin:read", [], None]),
            "device_id": st.just("doll"),
            "other": JSON,
        },
    )
)
def test_no_token_is_good_for_both_a_device_and_an_operator(policy: TokenPolicy, claims: dict[str, object]) -> None:
    """Also where one key signs both: these are the claims of a verified token."""
    claims = DEVICE | claims

    def is_good(judge: object) -> bool:
        try:
            operator_of(claims, 10, NOW) if judge is operator_of else check_claims(claims, policy, NOW)
        except IdentityError:
            return False
        return True

    assert not (is_good(operator_of) and is_good(check_claims))


@given(st.dictionaries(st.sampled_from(["aud", "sub", "exp", "nbf", "iat", "scope"]), JSON))
def test_any_claims_are_an_operator_or_an_identity_error(claims: dict[str, object]) -> None:
    try:
        operator = operator_of(CLAIMS | claims, 10, NOW)
    except IdentityError:
        return
    assert operator.scopes <= set(SCOPES)
