"""What all commands of ``cocoa admin`` have in common: where the gateway is, the token, and how to print."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from cocoa_tornado.errors import KeyMaterialError
from cocoa_tornado.plain_text import quoted
from cocoa_tornado.probe.target import Target, parse_target, tls_context
from cocoa_tornado.probe.verdicts import ProbeError
from cocoa_tornado.rules.addresses import is_loopback

from .admin_client import AdminClient, AdminError, Answer
from .listeners import is_of_another_user
from .options import Seconds, WrongUsage, given_secret
from .terminal import plain, without_controls

DEFAULT_URL: Final = "http://127.0.0.1:8080"
URL_VARIABLE: Final = "COCOA_ADMIN_URL"
TOKEN_VARIABLE: Final = "COCOA_ADMIN_TOKEN"
DEFAULT_TIMEOUT_S: Final = 20.0
"""A requeue may take a gateway 15 s."""
_SENDABLE: Final = re.compile(r"[!-~]+")
_FILE: Final = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


class Timestamp(click.ParamType[str]):
    """A time in RFC 3339, as the API takes it. The value stays text."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            has_zone = datetime.fromisoformat(text).tzinfo is not None
        except ValueError:
            has_zone = False
        if not has_zone:
            self.fail(f"{quoted(text)} is not a time in RFC 3339, such as 2030-01-01T00:00:00Z.", param, ctx)
        return text


@dataclass(frozen=True, slots=True)
class Admin:
    """One invocation of a command.

    :ivar as_json: whether to print JSON
    """

    client: AdminClient
    as_json: bool

    def ask(
        self, method: str, path: str, query: Mapping[str, object] | None = None, body: bytes | None = None
    ) -> Answer:
        """Send one request, as :meth:`AdminClient.ask`. With ``as_json``, print the error body if the API refuses it: a
        script finds the error in its ``status``."""
        try:
            return self.client.ask(method, path, query, body)
        except AdminError as error:
            if self.as_json and error.refusal is not None:
                print_json(error.refusal)
            raise

    def show(self, answer: Answer, lines: Iterable[str]) -> None:
        """Print an answer, as JSON or for people, and on standard error which servers it lacks."""
        if self.as_json:
            print_json(answer.text)
        else:
            for line in lines:
                click.echo(line)
        note_missing(answer.value.get("missing"))


def print_json(text: str) -> None:
    """Print JSON in UTF-8, which JSON is in any locale, on one line."""
    click.echo(without_controls(text).encode("utf-8", "backslashreplace"))


def note(text: str) -> None:
    """Print one line on standard error."""
    click.echo(text, err=True)


def note_missing(missing: object) -> None:
    """Print which servers did not answer."""
    if isinstance(missing, list) and missing:
        note(f"No answer from: {', '.join(plain(name) for name in missing)}. The result does not include them.")


def admin_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator for a command of ``cocoa admin``: it adds the common options, in the help behind the command's
    own, and passes an :class:`Admin` as the first argument instead of them."""

    def make(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            admin = _admin(options)
            try:
                function(admin, **options)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                # Every use of an answer expects the form that the contract gives it.
                raise AdminError(f"{admin.client.where}: this version of cocoa cannot read its answer") from error

        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        command = click.command(name, context_settings=settings)(run)
        for option in _OPTIONS:
            option(command)
        return command

    return make


_OPTIONS: Final = (
    click.option(
        "--url",
        envvar=URL_VARIABLE,
        default=DEFAULT_URL,
        metavar="URL",
        help="The gateway, or any server of several: http:// or https://.  "
        f"[env: {URL_VARIABLE}; default: {DEFAULT_URL}]",
    ),
    click.option(
        "--token",
        metavar="JWT",
        help="Admin token, or @FILE to read it from a file. Other users can see the arguments of a process: use the "
        f"file or the environment.  [env: {TOKEN_VARIABLE}; default: one signed with this machine's development key]",
    ),
    click.option("--ca", type=_FILE, metavar="FILE", help="CA certificates (PEM) to use instead of the system's."),
    click.option("--insecure", is_flag=True, help="Do not verify certificates."),
    click.option(
        "--timeout",
        "timeout_s",
        type=Seconds(0.1, 600.0),
        default=DEFAULT_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="Time limit for each answer.",
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print the JSON of the API, also of an error: `cocoa admin --help` says more.",
    ),
)
_COMMON: Final = ("url", "token", "ca", "insecure", "timeout_s", "as_json")


def _admin(options: dict[str, Any]) -> Admin:
    """Take the common options out of ``options``."""
    url, token, ca, insecure, timeout_s, as_json = (options.pop(name) for name in _COMMON)
    if ca is not None and insecure:
        raise WrongUsage("--ca and --insecure are mutually exclusive.")
    try:
        target, url_token = parse_target(url if "://" in url else f"http://{url}")
        if url_token is not None:
            raise WrongUsage("--url: a token in the query would be in logs; give it with --token.")
    except ProbeError as error:
        raise WrongUsage(f"--url: {error}") from error
    if target.secure:
        try:
            target = replace(target, tls=tls_context(ca, insecure))
        except ProbeError as error:
            raise WrongUsage(f"--ca: {error}") from error
    given = _given_token(token)
    client = AdminClient(target, given or _development_token(target), timeout_s, has_own_token=given is not None)
    return Admin(client, as_json)


def _given_token(option: str | None) -> str | None:
    """The token that the user gave, if any. Raises WrongUsage."""
    origin = TOKEN_VARIABLE if option is None else "--token"
    value = os.environ.get(TOKEN_VARIABLE) if option is None else option
    if not value and option is None:
        return None
    token = given_secret(value or "", origin).strip()
    if not _SENDABLE.fullmatch(token):
        raise WrongUsage(f"{origin}: not a token: tokens contain only ASCII characters, without blanks.")
    return token


def _development_token(target: Target) -> str:
    """A token signed with the development key, if there is one and the gateway can have it. Raises WrongUsage."""
    from cocoa_tornado.identity.devkey import FILE_NAME, development_secret, user_data_dir
    from cocoa_tornado.identity.keys import Signer
    from cocoa_tornado.identity.minting import AdminTokenRequest, admin_claims

    from .mint_token import user_name

    ways = f"give one with --token @FILE or {TOKEN_VARIABLE} (cocoa mint-token --admin)"
    if not is_loopback(target.host):
        raise WrongUsage(f"No admin token: {ways}. The development key is for gateways on this machine.")
    if is_of_another_user(target.port):
        raise WrongUsage(f"No admin token: {ways}. Another user of this machine listens on port {target.port}.")
    folder = os.environ.get("COCOA_DATA_DIR")
    try:
        data_dir = Path(folder) if folder else user_data_dir()
        if not (data_dir / FILE_NAME).exists():
            raise WrongUsage(f"No admin token: {ways}. There is no development key in {data_dir} either.")
        signer = Signer.from_secret(development_secret(data_dir).secret)
    except KeyMaterialError as error:
        raise click.ClickException(str(error)) from error
    except (OSError, ValueError) as error:
        raise WrongUsage("COCOA_DATA_DIR: it cannot be read.") from error
    return signer.sign(admin_claims(AdminTokenRequest(user_name()), time.time()))
