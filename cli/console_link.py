"""The link that opens the web console, signed in: for development only."""

from __future__ import annotations

import sys
import time

import click

from cocoa_tornado.errors import CocoaError
from cocoa_tornado.identity.devkey import development_secret
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import AdminTokenRequest, admin_claims
from cocoa_tornado.rules.addresses import base_url
from cocoa_tornado.settings import Settings

from .listeners import is_of_another_user
from .mint_token import user_name
from .options import load_settings


def console_link(settings: Settings, url: str) -> str | None:
    """Return a link with an admin token of 12 hours in its fragment, which browsers send to no server. None unless the
    development key signs admin tokens, which only a gateway on loopback accepts; nor if the console is off.

    :param url: ``http://127.0.0.1:8080``
    :raises KeyMaterialError: the development key is unusable
    """
    if settings.console == "off" or settings.has_admin_keys or not settings.uses_development_key:
        return None
    signer = Signer.from_secret(development_secret(settings.data_dir).secret)
    return f"{url}/#token={signer.sign(admin_claims(AdminTokenRequest(user_name()), time.time()))}"


def admin_url(settings: Settings) -> str | None:
    """Where a gateway with these settings will have its console; None if it picks the port itself."""
    host, port = settings.host if settings.admin_port is None else settings.admin_host, _port(settings)
    return base_url(host, port, tls=settings.tls_cert is not None) if port else None


def _port(settings: Settings) -> int:
    return settings.port if settings.admin_port is None else settings.admin_port


def main(port: str) -> None:
    """Print the link for ``make run``, or nothing where there is none: ``cocoa serve`` reports what is wrong."""
    try:
        settings = load_settings(None, {"port": port}).settings
        url = admin_url(settings)
        # What another user serves there would get the token.
        link = None if url is None or is_of_another_user(_port(settings)) else console_link(settings, url)
    except (click.ClickException, CocoaError):
        return
    if link is not None:
        sys.stdout.write(f"{link}\n")


if __name__ == "__main__":
    main(sys.argv[1])
