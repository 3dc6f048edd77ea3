"""``cocoa mint-token``: prints a token for a device or an operator, valid or deliberately invalid."""

from __future__ import annotations

import getpass
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from cocoa_tornado.errors import KeyMaterialError
from cocoa_tornado.identity.keys import ALGORITHMS, SECRET_ALGORITHMS, Signer, compact_json
from cocoa_tornado.identity.minting import (
    ADMIN_LIFETIME_S,
    AdminTokenRequest,
    TokenRequest,
    admin_claims,
    token_claims,
)
from cocoa_tornado.plain_text import quoted
from cocoa_tornado.rules.admin_tokens import SCOPES
from cocoa_tornado.rules.durations import parse_duration_s

from .options import given_secret, load_settings

if TYPE_CHECKING:
    from cocoa_tornado.settings import Settings


MAX_CLAIM_LEVELS = 100
"""How deep the JSON of a claim may be nested. json.loads accepts nesting up to Python's recursion limit; encoding the
token adds a level and would then fail."""


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_duration_s(value, negative=True)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _user_id(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    from cocoa_tornado.admin.requests import user_of

    return user_of(value)  # as in `cocoa admin --user`: 007 and +7 are names


def _claims(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, object]:
    claims: dict[str, object] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{quoted(value)} is not of the form NAME=VALUE", ctx, param)
        try:
            claim = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        except ValueError:
            claim = text
        except RecursionError:
            _refuse_nesting(name, ctx, param)
        if _is_deeper(claim, MAX_CLAIM_LEVELS):
            _refuse_nesting(name, ctx, param)
        claims[name] = claim
    return claims


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _refuse_nesting(name: str, ctx: click.Context, param: click.Parameter) -> NoReturn:
    problem = f"the JSON of {quoted(name)} is nested deeper than {MAX_CLAIM_LEVELS} levels"
    raise click.BadParameter(problem, ctx, param) from None


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number


@click.command("mint-token", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--device-id", metavar="D", help="Device that the token identifies.  [required without --admin]")
@click.option("--admin", is_flag=True, help="Print an admin token, for an operator, instead of a device's.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    metavar="SCOPE",
    help=f"With --admin: what the token permits, {', '.join(SCOPES)}; repeatable.  [default: all of them]",
)
@click.option(
    "--subject",
    metavar="S",
    help="With --admin: the operator's name, which the log shows for each change.  [default: your user name]",
)
@click.option(
    "--user-id",
    callback=_user_id,
    default="0",
    show_default=True,
    metavar="U",
    help="Owner of the device: 99 is the integer, '\"99\"' the string; what does not look like an integer is a string.",
)
@click.option("--device-version", default="1.0.0", show_default=True, metavar="V", help="Firmware version.")
@click.option(
    "--expires-in",
    "lifetime_s",
    callback=_duration,
    metavar="DURATION",
    help="Lifetime: 90s, 15m, 1h30m, 24h, 7d; 0s or -1h make an expired token.  "
    "[default: the setting jwt_lifetime, 24h; with --admin: 12h]",
)
@click.option(
    "--secret",
    metavar="S",
    help="HMAC secret to sign with, or @FILE to read it from a file. Other users can see the arguments of a process: "
    "pass production secrets in COCOA_JWT_SECRET.",
)
@click.option(
    "--private-key",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="File with a private key to sign with: RSA (RS256), EC P-256 (ES256), Ed25519 or Ed448 (EdDSA).",
)
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    metavar="A",
    help=f"One of {', '.join(ALGORITHMS)}; it must match the key.  [default: according to the key]",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="G",
    help="Group of the device, of 1 to 128 bytes without control characters; repeatable. A gateway accepts at most 64.",
)
@click.option(
    "--claim",
    "extra_claims",
    callback=_claims,
    multiple=True,
    metavar="K=V",
    help="Additional or overridden claim; V is parsed as JSON if possible, else it is a string; repeatable.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='Print one JSON object: {"token":...,"claims":{...},"expires_at":...}.',
)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings in a TOML file; also COCOA_CONFIG."
)
@click.pass_context
def mint_token(
    context: click.Context,
    device_id: str | None,
    admin: bool,
    scopes: tuple[str, ...],
    subject: str | None,
    user_id: int | str,
    device_version: str,
    lifetime_s: float | None,
    secret: str | None,
    private_key: Path | None,
    algorithm: str | None,
    groups: tuple[str, ...],
    extra_claims: dict[str, object],
    as_json: bool,
    config: Path | None,
) -> None:
    """Print a token for a device, or for an operator.

    Standard output has the token only. Without --secret and --private-key, the token is signed with a key from the
    gateway's settings (configuration file and environment): jwt_signing_key, jwt_secret, or a private key in jwt_key.
    If none is set, it is signed with this machine's development key, which `cocoa serve` uses too. With --admin, the
    settings are admin_jwt_secret, or a private key in admin_jwt_key.

    The claims are not validated, so that tests can create invalid tokens. Exit status 1 if the key is unusable, 2 for
    wrong usage.

    \b
    For a gateway on this machine:
      websocat "ws://127.0.0.1:8080/ws?token=$(cocoa mint-token --device-id doll-1)"
    For another gateway, with its secret:
      COCOA_JWT_SECRET=@secret.txt cocoa mint-token --device-id doll-1 --user-id 99 --expires-in 7d
    The owner is the string 99, not the integer, as in `cocoa admin devices --user '"99"'`:
      cocoa mint-token --device-id doll-1 --user-id '"99"'
    With a private key, for a device in two groups:
      cocoa mint-token --device-id doll-1 --private-key key.pem --group kitchen --group beta
    An expired token, and one of another issuer:
      cocoa mint-token --device-id doll-1 --expires-in -1h
      cocoa mint-token --device-id doll-1 --claim iss=somebody-else
    An invalid token, whose device_id is a number:
      cocoa mint-token --device-id doll-1 --claim device_id=5
    For an operator who may neither change anything nor read messages:
      cocoa mint-token --admin --scope admin:read --subject night-watch
    """
    _check_usage(context, admin=admin)
    if secret is not None and private_key is not None:
        raise click.UsageError("--secret and --private-key are mutually exclusive.")
    has_own_key = secret is not None or private_key is not None
    settings = load_settings(config, {}, with_keys=not has_own_key).settings
    try:
        signer = (resolve_admin_key if admin else resolve_key)(settings, secret, private_key, algorithm)
    except KeyMaterialError as error:
        raise click.ClickException(str(error)) from error
    if admin:
        admin_lifetime_s = ADMIN_LIFETIME_S if lifetime_s is None else lifetime_s
        operator = user_name() if subject is None else subject
        admin_request = AdminTokenRequest(operator, scopes or SCOPES, admin_lifetime_s, extra_claims)
        claims = admin_claims(admin_request, time.time())
    else:
        request = TokenRequest(device_id or "", user_id, device_version, groups, lifetime_s, extra_claims)
        claims = token_claims(request, settings.token_policy, time.time())
    token = signer.sign(claims)
    if as_json:
        click.echo(compact_json({"token": token, "claims": claims, "expires_at": claims["exp"]}))
    else:
        click.echo(token)


def _check_usage(context: click.Context, *, admin: bool) -> None:
    """Raise UsageError for an option that the kind of token does not have, and for a missing device id."""
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    foreign = given & ({"device_id", "user_id", "device_version", "groups"} if admin else {"scopes", "subject"})
    options = {param.name: param.opts[0] for param in context.command.params}
    if foreign:
        named = ", ".join(sorted(options[name] for name in foreign))
        raise click.UsageError(f"{named}: {'not for an admin token' if admin else 'only with --admin'}.")
    if not admin and "device_id" not in given:
        raise click.UsageError("Missing option '--device-id'.")


def user_name() -> str:
    """Return who runs this command, for the log of the gateway; ``operator`` if the system has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "operator"


def resolve_key(settings: Settings, secret: str | None, private_key: Path | None, algorithm: str | None) -> Signer:
    """Return the signer, with a note on standard error if it uses the development key.

    Cases, in this order: a given secret; a given private key; a signing key in the settings; only verification keys in
    the settings, which is an error; no key in the settings.

    :param secret: may be ``@FILE``
    :raises KeyMaterialError: the key is unusable, or cannot sign
    :raises WrongSetting: the given secret is invalid
    :raises click.UsageError: the algorithm does not match the key
    """
    if secret is not None:
        return _with_secret(given_secret(secret, "--secret"), algorithm, settings.jwt_algorithms)
    if private_key is not None:
        return _checked(Signer.from_file(private_key), algorithm)
    if settings.jwt_signing_key is not None:
        return _checked(Signer.from_file(settings.jwt_signing_key).preferring(settings.jwt_algorithms), algorithm)
    if settings.jwt_secret:
        return _with_secret(settings.jwt_secret, algorithm, settings.jwt_algorithms)
    if not settings.uses_development_key:
        return _checked(_private_among(settings.jwt_key).preferring(settings.jwt_algorithms), algorithm)
    return _with_development_key(settings, algorithm)


def resolve_admin_key(
    settings: Settings, secret: str | None, private_key: Path | None, algorithm: str | None
) -> Signer:
    """Return the signer of admin tokens, as :func:`resolve_key`.

    :raises KeyMaterialError: the key is unusable, or the settings have none that could sign
    """
    if secret is not None or private_key is not None:
        return resolve_key(settings, secret, private_key, algorithm)
    if settings.admin_jwt_secret:
        return _with_secret(settings.admin_jwt_secret, algorithm, SECRET_ALGORITHMS)
    if settings.admin_jwt_key:
        return _checked(_private_among(settings.admin_jwt_key), algorithm)
    if not settings.uses_development_key:
        disabled = "the admin API is disabled, as neither admin_jwt_secret nor admin_jwt_key is set"
        raise KeyMaterialError(f"{disabled}; set one, or use --secret or --private-key")
    return _with_development_key(settings, algorithm)


def _with_development_key(settings: Settings, algorithm: str | None) -> Signer:
    from cocoa_tornado.identity.devkey import development_secret

    key = development_secret(settings.data_dir)
    signer = _with_secret(key.secret, algorithm, settings.jwt_algorithms)
    made = ", created just now" if key.created else ""
    click.echo(f"Signed with this machine's development key: {key.path}{made}", err=True)
    return signer


def _with_secret(secret: str, algorithm: str | None, allowed: Sequence[str]) -> Signer:
    by_default = next((name for name in SECRET_ALGORITHMS if name in allowed), SECRET_ALGORITHMS[0])
    if algorithm is not None and algorithm not in SECRET_ALGORITHMS:
        raise click.UsageError(f"--algorithm {algorithm} requires a private key; a secret signs with {by_default}.")
    return Signer.from_secret(secret, algorithm or by_default)


def _private_among(locations: tuple[str, ...]) -> Signer:
    from cocoa_tornado.identity.key_store import KeySources, default_signer

    signer = default_signer(KeySources(locations=locations))
    if signer is None:
        raise KeyMaterialError("the configured JWT keys cannot sign; use --private-key or --secret")
    return signer


def _checked(signer: Signer, algorithm: str | None) -> Signer:
    if algorithm is None:
        return signer
    preferred = signer.preferring((algorithm,))
    if preferred.algorithm != algorithm:
        raise click.UsageError(f"--algorithm {algorithm} does not match this key, which signs with {signer.algorithm}.")
    return preferred
