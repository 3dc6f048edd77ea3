"""The rules between settings. Pure: no file is opened, no name resolved.

That each value by itself is of its kind has been seen to before (``settings_kinds``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from .errors import SettingError
from .plain_text import one_line
from .rules.addresses import is_loopback
from .rules.identity import ADMIN_AUDIENCE, MIN_SECRET_BYTES
from .rules.sizes import format_size
from .settings import TABLE, Settings, non_defaults

DEFAULT: Final = "default"
NEW_SECRET: Final = "openssl rand -base64 32"
KEY_SETTINGS: Final = frozenset({"jwt_secret", "jwt_previous_secrets", "jwt_key", "jwt_signing_key"})
ADVISED_API_SECRET_BYTES: Final = 16  # they are guessed online only, which the endpoint's rate limit slows down
_NO_SOURCES: Final[Mapping[str, str]] = MappingProxyType({})
# The later, the more likely meant: the word that a source begins with.
_PRECEDENCE: Final = (DEFAULT, "file", "environment", "option")


class Fault(NamedTuple):
    """A rule that does not hold.

    :ivar keys: the settings in it; the one to blame first, if all come from the same source
    """

    keys: tuple[str, ...]
    problem: str
    allowed: str


class Warned(NamedTuple):
    """What is allowed but unwise, or of no effect: an event for the log, with its fields. No field shows a secret."""

    event: str
    fields: Mapping[str, str]


def check(settings: Settings, sources: Mapping[str, str] = _NO_SOURCES, *, with_keys: bool = True) -> None:
    """Return if the settings go together.

    :param sources: where each key's value came from, for the message; what is missing is given in the code
    :param with_keys: False where nothing is to be signed or verified with the keys in the settings
    :raises SettingError: the first rule that does not hold
    """
    for rule in (*_KEY_RULES, *_RULES) if with_keys else _RULES:
        for fault in rule(settings):
            raise _error(settings, fault, sources)


def _error(settings: Settings, fault: Fault, sources: Mapping[str, str]) -> SettingError:
    given = {row.key for row in non_defaults(settings)}
    source_of = {key: sources.get(key, "in the code" if key in given else DEFAULT) for key in fault.keys}

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
            f"{settings.host} is not a loopback address, and the development key must not guard a network",
            "127.0.0.1, ::1, localhost; or any address once jwt_secret or jwt_key is set",
        )


def _short_secrets(settings: Settings) -> Iterator[Fault]:
    """An HMAC secret can be guessed offline from any one token, so a short one must not guard a network."""
    if is_loopback(settings.host):
        return
    current = [("jwt_secret", settings.jwt_secret)] if settings.jwt_secret else []
    for key, secret in (*current, *(("jwt_previous_secrets", secret) for secret in settings.jwt_previous_secrets)):
        size = len(secret.encode("utf-8", "surrogateescape"))
        if size < MIN_SECRET_BYTES:
            problem = f"it is {size} bytes long, too short for a gateway that listens on {settings.host}"
            allowed = f"{MIN_SECRET_BYTES} bytes or more (RFC 7518, 3.2); {NEW_SECRET} makes one"
            yield Fault((key,), problem, allowed)


def advice(settings: Settings) -> Iterator[Warned]:
    """What is allowed but unwise."""
    short = [key for key, secret in settings.api_credentials if len(secret.encode()) < ADVISED_API_SECRET_BYTES]
    if short and not is_loopback(settings.host):
        names = one_line(", ".join(short))
        detail = f"secrets under {ADVISED_API_SECRET_BYTES} bytes can be guessed"
        yield Warned("api secrets are short", {"settings": "api_credentials", "keys": names, "detail": detail})


def _audiences(settings: Settings) -> Iterator[Fault]:
    if settings.jwt_audience == ADMIN_AUDIENCE:
        yield Fault(("jwt_audience",), f"{ADMIN_AUDIENCE} is the audience of admin tokens", "another audience, or none")


def _keys(settings: Settings) -> Iterator[Fault]:
    with_secret = [name for name in settings.jwt_algorithms if name.startswith("HS")]
    if not settings.jwt_algorithms:
        yield Fault(("jwt_algorithms",), "no algorithm is left", TABLE["jwt_algorithms"].kind.allowed)
    if not with_secret and (settings.jwt_secret or settings.uses_development_key):
        key = "jwt_secret" if settings.jwt_secret else "the development key"
        yield Fault(("jwt_algorithms",), f"none of them works with {key}", "at least one of HS256, HS384, HS512")
    if settings.jwt_key and len(with_secret) == len(settings.jwt_algorithms):
        yield Fault(("jwt_algorithms",), "none of them works with jwt_key", "at least one of RS256, ES256, EdDSA")
    if settings.jwt_signing_key and not settings.jwt_key:
        yield Fault(
            ("jwt_signing_key",),
            "the tokens it signs would be refused, for jwt_key is not set",
            "jwt_key with its public half, which may be the same file",
        )


def _together(*keys: str) -> Callable[[Settings], Iterator[Fault]]:
    def rule(settings: Settings) -> Iterator[Fault]:
        given = [key for key in keys if getattr(settings, TABLE[key].attribute)]
        missing = [key for key in keys if key not in given]
        if given and missing:
            yield Fault(tuple(given), f"{missing[0]} is missing", f"{' and '.join(keys)} together, or neither")

    return rule


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
        yield Fault(("drain_delay", "drain_grace"), problem, "drain_delay <= drain_grace, of which it is a part")
    if settings.publish_bytes < settings.max_message_bytes:
        queue = f"publish_queue_bytes {format_size(settings.publish_bytes)}"
        problem = f"{queue} is below {_written(settings, 'max_message_bytes')}"
        yield Fault(("publish_queue_bytes", "max_message_bytes"), problem, "room for at least one message")


def _topics(settings: Settings) -> Iterator[Fault]:
    keys = ("kafka_results_topic", "kafka_messages_topic", "kafka_quarantine_topic")
    names = {key: getattr(settings, key) for key in keys}
    for position, key in enumerate(keys):
        for other in keys[:position]:
            if names[key] == names[other]:
                yield Fault((key, other), f"{other} is {names[key]!r} too", "three different topics")


def _tls_to_kafka(settings: Settings) -> Iterator[Fault]:
    keys = ("kafka_ssl_ca", "kafka_ssl_cert", "kafka_ssl_key", "kafka_ssl_key_password")
    given = [key for key in keys if getattr(settings, key)]
    if given and "SSL" not in settings.kafka_security_protocol:
        problem = f"it has no effect with kafka_security_protocol {settings.kafka_security_protocol}"
        yield Fault((given[0],), problem, "kafka_security_protocol SSL or SASL_SSL")
    if settings.kafka_ssl_key_password and not settings.kafka_ssl_key:
        yield Fault(("kafka_ssl_key_password",), "kafka_ssl_key is missing", "both together, or neither")


def _sasl(settings: Settings) -> Iterator[Fault]:
    """Each mechanism has what it needs, and nothing is given that would silently have no effect."""
    protocol, mechanism = settings.kafka_security_protocol, settings.kafka_sasl_mechanism
    password = ("kafka_sasl_username", "kafka_sasl_password")
    grant = ("kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret")
    optional: tuple[str, ...] = ("kafka_oauth_scope",)
    if protocol.startswith("SASL") and not mechanism:
        allowed = TABLE["kafka_sasl_mechanism"].kind.allowed.removeprefix("nothing, ")
        yield Fault(("kafka_sasl_mechanism", "kafka_security_protocol"), f"{protocol} needs a SASL mechanism", allowed)
    if mechanism and not protocol.startswith("SASL"):
        yield Fault(
            ("kafka_sasl_mechanism", "kafka_security_protocol"),
            f"{mechanism} has no effect with kafka_security_protocol {protocol}",
            "kafka_security_protocol SASL_SSL or SASL_PLAINTEXT",
        )
    needed = () if not mechanism else grant if mechanism == "OAUTHBEARER" else password
    for key in needed:
        if not getattr(settings, key):
            yield Fault(
                ("kafka_sasl_mechanism",), f"{mechanism} needs {key}, which is not set", " and ".join(needed) + " set"
            )
    for key in (*password, *grant, *optional):
        belongs = key in needed or (key in optional and needed == grant)
        if getattr(settings, key) and not belongs:
            users = "OAUTHBEARER" if "oauth" in key else "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"
            now = mechanism or "no kafka_sasl_mechanism"
            yield Fault((key,), f"it has no effect with {now}", f"kafka_sasl_mechanism {users}")


def _credentials(settings: Settings) -> Iterator[Fault]:
    keys = [key for key, _ in settings.api_credentials]
    if len(set(keys)) < len(keys):
        yield Fault(("api_credentials",), "two of them have the same key", "one secret for each key")


_KEY_RULES: Final[tuple[Callable[[Settings], Iterator[Fault]], ...]] = (_development_key, _short_secrets, _keys)
_RULES: Final[tuple[Callable[[Settings], Iterator[Fault]], ...]] = (
    _audiences,
    _credentials,
    _together("tls_cert", "tls_key"),
    _order,
    _topics,
    _together("kafka_ssl_cert", "kafka_ssl_key"),
    _tls_to_kafka,
    _sasl,
)
