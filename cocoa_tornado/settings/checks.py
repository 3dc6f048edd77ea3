"""The rules between settings. Pure: opens no file and resolves no name.

Each value by itself has been validated before (``types``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from ..brokers.kafka_settings import faults as kafka_faults
from ..errors import SettingError
from ..plain_text import one_line
from ..presence.redis_settings import faults as presence_faults
from ..rules.addresses import is_loopback
from ..rules.identity import ADMIN_AUDIENCE, MIN_SECRET_BYTES
from ..rules.sizes import format_size
from .rows import Fault, together
from .table import TABLE, Settings, non_defaults

DEFAULT: Final = "default"
NEW_SECRET: Final = "openssl rand -base64 32"
KEY_SETTINGS: Final = frozenset(
    {"jwt_secret", "jwt_previous_secrets", "jwt_key", "jwt_signing_key", "admin_jwt_secret", "admin_jwt_key"}
)
ADVISED_API_SECRET_BYTES: Final = 16  # they are guessed online only, which the endpoint's rate limit slows down
_NO_SOURCES: Final[Mapping[str, str]] = MappingProxyType({})
# The first words of sources, by precedence: the later the source, the more likely the value is the wrong one.
_PRECEDENCE: Final = (DEFAULT, "file", "environment", "option")


class Warned(NamedTuple):
    """A log line about a setting that is allowed but insecure or ineffective. Its fields contain no secret."""

    event: str
    fields: Mapping[str, str]


def check(settings: Settings, sources: Mapping[str, str] = _NO_SOURCES, *, with_keys: bool = True) -> None:
    """Check the rules between settings.

    :param sources: the source of each key's value, for the message; values without one come from code
    :param with_keys: False for a caller that neither signs nor verifies with the keys in the settings
    :raises SettingError: the first violated rule
    """
    for rule in (*_KEY_RULES, *_RULES) if with_keys else _RULES:
        for fault in rule(settings):
            raise _error(settings, fault, sources)


def _error(settings: Settings, fault: Fault, sources: Mapping[str, str]) -> SettingError:
    given = {row.key for row in non_defaults(settings)}
    source_of = {key: sources.get(key, "code" if key in given else DEFAULT) for key in fault.keys}

    def weight(key: str) -> int:
        word = source_of[key].partition(" ")[0]
        return _PRECEDENCE.index(word) if word in _PRECEDENCE else 1

    # max() keeps the first of equals.
    blamed = max(fault.keys, key=weight)
    return SettingError(blamed, source_of[blamed], fault.problem, fault.allowed)


def _written(settings: Settings, key: str) -> str:
    row = TABLE[key]
    return f"{key} {row.kind.show(getattr(settings, row.attribute))}"


def _development_key(settings: Settings) -> Iterator[Fault]:
    if settings.uses_development_key and not is_loopback(settings.host):
        yield Fault(
            ("host",),
            f"{settings.host} is not a loopback address; the development key is for loopback only",
            "127.0.0.1, ::1, localhost; or any address if jwt_secret or jwt_key is set",
        )


def _short_secrets(settings: Settings) -> Iterator[Fault]:
    """An HMAC secret can be guessed offline from a single token, so a short one is for loopback only."""
    if is_loopback(settings.host):
        return
    current = [("jwt_secret", settings.jwt_secret)] if settings.jwt_secret else []
    for key, secret in (*current, *(("jwt_previous_secrets", secret) for secret in settings.jwt_previous_secrets)):
        size = len(secret.encode("utf-8", "surrogateescape"))
        if size < MIN_SECRET_BYTES:
            problem = f"it is {size} bytes long, too short for a gateway that listens on {settings.host}"
            allowed = f"{MIN_SECRET_BYTES} bytes or more (RFC 7518, 3.2), for example from {NEW_SECRET}"
            yield Fault((key,), problem, allowed)


def _admin_secret(settings: Settings) -> Iterator[Fault]:
    """A client that may mint device tokens must not be able to mint admin tokens."""
    secret = settings.admin_jwt_secret
    if not secret:
        return
    for key, others in (
        ("jwt_secret", (settings.jwt_secret,)),
        ("jwt_previous_secrets", settings.jwt_previous_secrets),
    ):
        if secret in others:
            allowed = f"a secret of its own, for example from {NEW_SECRET}"
            yield Fault(("admin_jwt_secret",), f"it equals {key}, a secret of device tokens", allowed)
    size = len(secret.encode("utf-8", "surrogateescape"))
    if size < MIN_SECRET_BYTES and not settings.admin_is_on_loopback:
        problem = f"it is {size} bytes long, too short for a gateway that listens on {_exposed(settings)}"
        allowed = f"{MIN_SECRET_BYTES} bytes or more (RFC 7518, 3.2), for example from {NEW_SECRET}"
        yield Fault(("admin_jwt_secret",), problem, allowed)


def _exposed(settings: Settings) -> str:
    return settings.admin_host if is_loopback(settings.host) else settings.host


def _admin_listener(settings: Settings) -> Iterator[Fault]:
    if settings.admin_port is None:
        return
    if settings.uses_development_key and not settings.has_admin_keys and not is_loopback(settings.admin_host):
        yield Fault(
            ("admin_host",),
            f"{settings.admin_host} is not a loopback address; the development key is for loopback only",
            "127.0.0.1, ::1, localhost; or any address if admin_jwt_secret or admin_jwt_key is set",
        )
    if settings.admin_port and settings.admin_port == settings.port:
        yield Fault(("admin_port", "port"), f"{settings.admin_port} is the port of the devices", "another port")
    if settings.admin_port == 0 and settings.workers > 1:
        problem = f"each of {settings.workers} workers would pick a port of its own"
        yield Fault(("admin_port", "workers"), problem, "a port from 1 to 65535, which the workers share")


def advice(settings: Settings) -> Iterator[Warned]:
    """Warnings about settings that are allowed but insecure or ineffective."""
    short = [key for key, secret in settings.api_credentials if len(secret.encode()) < ADVISED_API_SECRET_BYTES]
    if short and not is_loopback(settings.host):
        names = one_line(", ".join(short))
        detail = f"secrets under {ADVISED_API_SECRET_BYTES} bytes can be guessed"
        yield Warned("weak api secrets", {"settings": "api_credentials", "keys": names, "detail": detail})
    if settings.admin_port is not None and not settings.has_admin_keys and not settings.uses_development_key:
        detail = "neither admin_jwt_secret nor admin_jwt_key is set"
        yield Warned("admin api disabled", {"settings": "admin_port", "detail": detail})


def _audiences(settings: Settings) -> Iterator[Fault]:
    if settings.jwt_audience == ADMIN_AUDIENCE:
        yield Fault(("jwt_audience",), f"{ADMIN_AUDIENCE} is the audience of admin tokens", "another audience, or none")


def _keys(settings: Settings) -> Iterator[Fault]:
    with_secret = [name for name in settings.jwt_algorithms if name.startswith("HS")]
    if not settings.jwt_algorithms:
        yield Fault(("jwt_algorithms",), "it is empty", TABLE["jwt_algorithms"].kind.allowed)
    if not with_secret and (settings.jwt_secret or settings.uses_development_key):
        key = "jwt_secret" if settings.jwt_secret else "the development key"
        yield Fault(("jwt_algorithms",), f"none of them works with {key}", "at least one of HS256, HS384, HS512")
    if settings.jwt_key and len(with_secret) == len(settings.jwt_algorithms):
        yield Fault(("jwt_algorithms",), "none of them works with jwt_key", "at least one of RS256, ES256, EdDSA")
    if settings.jwt_signing_key and not settings.jwt_key:
        yield Fault(
            ("jwt_signing_key",),
            "the gateway would reject the tokens it signs, as jwt_key is not set",
            "jwt_key with its public key; it may be the same file",
        )


def _order(settings: Settings) -> Iterator[Fault]:
    if settings.low_water >= settings.high_water:
        problem = f"{_written(settings, 'low_water')} is not below {_written(settings, 'high_water')}"
        yield Fault(("low_water", "high_water"), problem, "low_water < high_water")
    if settings.ping_timeout_s > settings.ping_interval_s:
        problem = f"{_written(settings, 'ping_timeout')} is longer than {_written(settings, 'ping_interval')}"
        yield Fault(("ping_timeout", "ping_interval"), problem, "ping_timeout <= ping_interval")
    if 0 < settings.jwt_max_lifetime_s < settings.jwt_lifetime_s:
        problem = f"{_written(settings, 'jwt_lifetime')} is longer than {_written(settings, 'jwt_max_lifetime')}"
        yield Fault(("jwt_max_lifetime", "jwt_lifetime"), problem, "jwt_lifetime <= jwt_max_lifetime")
    if settings.drain_delay_s > settings.drain_grace_s:
        problem = f"{_written(settings, 'drain_delay')} is longer than {_written(settings, 'drain_grace')}"
        yield Fault(("drain_delay", "drain_grace"), problem, "drain_delay <= drain_grace, which includes it")
    if settings.publish_bytes < settings.max_message_bytes:
        queue = f"publish_queue_bytes {format_size(settings.publish_bytes)}"
        problem = f"{queue} is below {_written(settings, 'max_message_bytes')}"
        yield Fault(("publish_queue_bytes", "max_message_bytes"), problem, "room for at least one message")


def _workers(settings: Settings) -> Iterator[Fault]:
    """Workers are servers of their own: they need what several servers need."""
    if settings.workers == 1:
        return
    if settings.has_embedded_broker:
        problem = f"{settings.workers} workers cannot share the broker memory://, which is part of one process"
        yield Fault(("workers", "broker"), problem, "1, or more with broker kafka://")
    if settings.presence.lower().startswith("local:"):
        problem = f"{settings.workers} workers cannot share the presence local://, which is part of one process"
        yield Fault(("workers", "presence"), problem, "1, or more with presence redis://")


def _group_protocol(settings: Settings) -> Iterator[Fault]:
    """One reader alone has nothing to share out, and the check that it is alone needs the classic protocol."""
    if settings.kafka_group_protocol == "classic" or settings.has_embedded_broker or settings.shares_presence:
        return
    problem = f"kafka_group_protocol {settings.kafka_group_protocol} is for several servers, and presence is local://"
    yield Fault(("kafka_group_protocol", "presence"), problem, "classic, or presence redis://")


def _credentials(settings: Settings) -> Iterator[Fault]:
    keys = [key for key, _ in settings.api_credentials]
    if len(set(keys)) < len(keys):
        yield Fault(("api_credentials",), "two of them have the same key", "one secret for each key")


_KEY_RULES: Final[tuple[Callable[[Settings], Iterator[Fault]], ...]] = (
    _development_key,
    _short_secrets,
    _keys,
    _admin_secret,
)
_RULES: Final[tuple[Callable[[Settings], Iterator[Fault]], ...]] = (
    _audiences,
    _credentials,
    lambda settings: together(settings, "tls_cert", "tls_key"),
    _order,
    lambda settings: presence_faults(settings, settings.presence, settings.broker, settings.mailbox),
    _workers,
    _group_protocol,
    _admin_listener,
    kafka_faults,
)
