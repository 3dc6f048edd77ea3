"""The direction of imports:
cli -> service -> web -> routing, connection -> hub -> presence, relay -> rules and ports -> errors.

Each test looks at every module and reports all that break its rule, by name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "cocoa_tornado"

# Each layer may import itself and what stands to the right of it in the table. The longest prefix of a module's name
# decides its layer.
MAY_IMPORT: dict[str, set[str]] = {
    "plain_text": set(),
    "plain_files": set(),
    "adapters": set(),
    "asking": set(),
    "errors": {"plain_text"},
    "routing.address": set(),
    "rules": {"routing.address", "errors", "plain_text"},
    "brokers.port": {"rules"},
    # What an adapter says about itself to the settings: modules named *_settings and *_url.
    "about adapters": {"settings.rows", "settings.domain", "settings.types", "adapters", "rules", "plain_text"},
    "brokers": {"asking", "brokers.port", "rules", "errors", "plain_text"},
    "identity": {"rules", "errors", "plain_files", "plain_text"},
    "speech.port": {"rules"},
    "speech.engines": {"adapters", "plain_text"},
    "speech": {"speech.port", "speech.engines", "rules", "errors"},
    "relay.messages": {"routing.address", "rules"},
    "relay.port": {"relay.messages", "rules"},
    "relay.wire": {"routing.address", "relay.messages", "rules"},
    "relay.redis_lua": {"relay.port", "redis_store", "rules"},
    "relay": {
        *(f"relay.{name}" for name in ("messages", "port", "redis_lua", "wire")),
        *("redis_store", "rules", "errors"),
    },
    "presence.grants": {"rules"},
    "presence.actions": {"presence.grants", "relay.messages", "rules"},
    "presence.device_slots": {"presence.actions", "presence.grants", "relay.messages", "rules"},
    "presence.decision": {"presence.actions", "presence.device_slots", "presence.grants", "relay.messages", "rules"},
    "presence.rules": {
        *(f"presence.{name}" for name in ("actions", "decision", "device_slots", "grants")),
        *("relay.messages", "rules"),
    },
    "presence.table": {"presence.grants", "rules"},
    "presence.membership": {"presence.grants", "rules"},
    "presence.redis_lua": set(),
    "presence.redis_scripts": {"presence.redis_lua", "rules"},
    "presence.port": {"presence.grants", "rules"},
    "presence": {
        *(f"presence.{name}" for name in ("actions", "decision", "device_slots", "grants", "membership")),
        *(f"presence.{name}" for name in ("port", "rules", "table")),
        *(f"presence.{name}" for name in ("redis_lua", "redis_scripts")),
        *("redis_store", "relay.messages", "relay.port", "rules", "errors"),
    },
    "settings.types": {"adapters", "rules", "plain_text"},
    "settings.domain": {"settings.types", "adapters", "rules", "plain_text"},
    "settings.rows": {"settings.types", "settings.domain"},
    "settings": {
        *("about adapters", "settings.types", "settings.domain", "settings.rows"),
        *("presence.grants", "speech.engines", "adapters", "rules", "errors", "plain_files", "plain_text"),
    },
    "logs": set(),
    "systemd": set(),
    "workers.messages": set(),
    "workers.place": set(),
    "workers.own_metrics": set(),
    "workers.gathering": {"workers.messages"},
    "workers.port": {"rules"},
    "workers": {
        *(f"workers.{name}" for name in ("messages", "place", "own_metrics", "gathering", "port")),
        *("systemd", "rules", "errors"),
    },
    "hub": {"presence.port", "presence.grants", "rules"},
    "counters": set(),
    "metrics": {
        *("", "counters", "hub", "rules"),
        *("presence.port", "relay.port", "brokers.port", "mailboxes.port", "speech.port"),
    },
    "mailboxes.port": {"rules"},
    "redis_store": {"about adapters", "rules", "errors"},
    "mailboxes": {"mailboxes.port", "redis_store", "rules", "errors"},
    "sweeper": {"mailboxes.port", "errors"},
    "routing.round_trips": {"rules"},
    "routing.plan": {"routing.address", "rules"},
    "routing.receipt": set(),
    "routing": {
        *("routing.address", "routing.round_trips", "routing.plan", "routing.receipt"),
        *("hub", "counters", "presence.port", "relay.port", "relay.messages"),
        *("brokers.port", "mailboxes.port", "rules", "errors"),
    },
    "handover.pieces": {"rules"},
    "handover.announcements": set(),
    "handover.portions": {"handover.pieces"},
    "handover.routes": {"handover.pieces"},
    "handover.siblings": {"handover.pieces", "handover.portions"},
    "handover.rules": {
        *(f"handover.{name}" for name in ("pieces", "portions", "routes", "siblings")),
        "rules",
    },
    "handover.wire": {"handover.pieces", "rules"},
    "handover": {
        *(f"handover.{name}" for name in ("announcements", "pieces", "portions", "routes")),
        *(f"handover.{name}" for name in ("rules", "siblings", "wire")),
        *("hub", "counters", "relay.port", "relay.messages", "brokers.port", "rules", "errors"),
    },
    "transcriber": {"routing.round_trips", "counters", "brokers.port", "speech.port", "rules", "errors"},
    "connection.gap_notices": {"rules"},
    "connection.questions": {"rules"},
    "connection.box_reader": {"connection.gap_notices", "connection.questions", "rules"},
    "connection.queue": {"rules"},
    "connection.details": {"connection.queue", "rules"},
    "connection.making_room": {"connection.queue", "rules"},
    "connection.outbox": {"connection.details", "connection.making_room", "connection.queue", "rules"},
    "connection.keepalive": set(),
    "connection.heartbeat": {"rules"},
    "connection.limits": {"connection.making_room", "rules"},
    "connection.protocol": {
        "connection.heartbeat",
        "connection.limits",
        "connection.making_room",
        "connection.outbox",
        "connection.queue",
        "rules",
    },
    "connection": {
        *(
            "connection.box_reader",
            "connection.details",
            "connection.questions",
            "connection.keepalive",
            "connection.queue",
            "connection.limits",
            "connection.making_room",
            "connection.outbox",
        ),
        "connection.protocol",
        *("hub", "presence.port", "presence.grants", "transcriber"),
        *("counters", "brokers.port", "mailboxes.port", "rules", "errors"),
    },
    "canaries": {
        *("connection", "hub", "presence.port", "presence.grants", "counters"),
        *("brokers.port", "rules", "errors"),
    },
    "live": {"identity", "connection.limits", "presence.grants", "transcriber", "rules"},
    "web.listening_sockets": {"errors", "rules"},
    "web": {
        "plain_text",
        "web.listening_sockets",
        "live",
        "connection",
        "hub",
        "presence.port",
        "presence.grants",
        "transcriber",
        "counters",
        "metrics",
        "brokers.port",
        "mailboxes.port",
        "speech.port",
        "speech.segmenter",
        "workers.port",
        "openapi",
        "identity",
        "rules",
        "errors",
    },
    "openapi": {"", "rules"},
    # What the admin API shows and asks, apart from HTTP.
    "admin.rows": set(),
    "admin.requests": {"admin.rows", "rules"},
    "admin.servers": {"presence.port", "relay.messages", "relay.port"},
    "admin.subscribers": {"admin.requests", "admin.servers", "relay.port", "rules"},
    "admin.block_redis": {"admin", "redis_store"},
    "admin": {
        *("admin.rows", "admin.requests", "admin.servers", "admin.subscribers"),
        *(
            "web",
            "identity",
            "counters",
            "hub",
            "brokers.port",
            "mailboxes.port",
            "routing.address",
            "routing.plan",
            "rules",
            "errors",
            "plain_files",
            "plain_text",
        ),
    },
    "console": {"web"},
    "probe": {"identity", "rules", "errors", "plain_text"},
    "service": {
        "live",
        "web",
        "web.listening_sockets",
        "admin",
        "admin.servers",
        "admin.subscribers",
        "admin.block_redis",
        "console",
        "connection",
        "connection.keepalive",
        "connection.limits",
        "connection.making_room",
        "presence",
        "presence.port",
        "presence.grants",
        "presence.membership",
        "relay",
        "relay.port",
        "handover",
        "routing",
        "routing.round_trips",
        "mailboxes",
        "mailboxes.port",
        "sweeper",
        "canaries",
        "transcriber",
        "speech",
        "speech.port",
        "speech.engines",
        "hub",
        "counters",
        "metrics",
        "logs",
        "brokers",
        "about adapters",
        "brokers.port",
        "workers.port",
        "identity",
        "settings",
        "rules",
        "errors",
    },
    "cli": {
        "admin.requests",
        "asking",
        "service",
        "handover",
        "web.listening_sockets",
        "workers",
        "workers.place",
        "systemd",
        "settings",
        "settings.domain",
        "settings.rows",
        "settings.types",
        "identity",
        "probe",
        "logs",
        "rules",
        "errors",
        "plain_files",
        "plain_text",
        "",
    },
}

# Decisions are apart from I/O: they neither wait nor speak to anything, and neither does what they import.
PURE = (
    "rules",
    "routing.address",
    "routing.plan",
    "routing.receipt",
    "counters",
    *(f"presence.{name}" for name in ("actions", "decision", "device_slots", "grants")),
    *(f"presence.{name}" for name in ("membership", "rules", "table")),
    *(f"presence.{name}" for name in ("redis_lua", "redis_scripts")),
    *("relay.messages", "relay.wire"),
    *("admin.rows", "admin.requests"),
    *(f"handover.{name}" for name in ("announcements", "pieces", "portions", "routes", "rules", "siblings", "wire")),
    *(f"workers.{name}" for name in ("gathering", "messages", "own_metrics", "port")),
    *(
        f"connection.{name}"
        for name in (
            "box_reader",
            "details",
            "gap_notices",
            "heartbeat",
            "keepalive",
            "limits",
            "making_room",
            "outbox",
            "protocol",
            "questions",
            "queue",
        )
    ),
)
FORBIDDEN_IN_RULES = {"asyncio", "tornado", "socket", "threading", "time", "kafka", "logging", "selectors", "ssl"}


def modules() -> list[tuple[str, Path]]:
    found = [
        (".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."), path)
        for path in (ROOT / PACKAGE).rglob("*.py")
    ]
    found += [(f"cli.{path.stem}".removesuffix(".__init__"), path) for path in (ROOT / "cli").glob("*.py")]
    return sorted(found)


MODULES = modules()
# Packages whose __init__ imports from several layers, or from none.
PACKAGES = {
    "",
    "admin",
    "brokers",
    "connection",
    "console",
    "handover",
    "identity",
    "mailboxes",
    "presence",
    "probe",
    "relay",
    "routing",
    "service",
    "web",
    "workers",
}


def layer(module: str) -> str | None:
    if "." in module and module.endswith(("_settings", "_url")):
        return "about adapters"
    fitting = [name for name in MAY_IMPORT if module == name or module.startswith((f"{name}.", f"{name}_"))]
    return max(fitting, key=len) if fitting else None


def imports(module: str, path: Path) -> Iterator[str]:
    """Absolute names of what a module imports, in functions too."""
    package = [PACKAGE, *module.split(".")] if path.name == "__init__.py" else [PACKAGE, *module.split(".")[:-1]]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from [prefix] if node.module else (f"{prefix}.{name.name}" for name in node.names)


@cache
def every_import() -> list[tuple[str, str]]:
    """Each module with each of its imports."""
    return [(module, imported) for module, path in MODULES for imported in imports(module, path)]


@cache
def graph() -> dict[str, frozenset[str]]:
    """What each module imports, at runtime or for types alone: modules of ours by their names in ``MODULES``, others by
    their absolute names. The packages above a module are not counted as its imports."""
    ours = {module for module, _ in MODULES}
    found: dict[str, set[str]] = {module: set() for module in ours}
    for module, path in MODULES:
        package = [PACKAGE, *module.split(".")] if path.name == "__init__.py" else [PACKAGE, *module.split(".")[:-1]]
        package = [part for part in package if part]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [(name.name, name.name) for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                prefix = ".".join([*base, *([node.module] if node.module else [])])
                names = [(f"{prefix}.{name.name}", prefix) for name in node.names]
            for candidates in names:
                own = [name.removeprefix(f"{PACKAGE}.") if name != PACKAGE else "" for name in candidates]
                found[module].add(next((name for name in own if name in ours), candidates[-1]))
    return {module: frozenset(imported) for module, imported in found.items()}


@cache
def reach(module: str) -> dict[str, str]:
    """All that a module imports, directly or not, each with one of the ways to it."""
    ways = {module: module}
    todo = [module]
    for at in todo:
        for imported in sorted(graph().get(at, ())):
            if imported not in ways:
                ways[imported] = f"{ways[at]} -> {imported}"
                todo.append(imported)
    return ways


def assert_none_imports(is_forbidden: Callable[[str, str], bool]) -> None:
    """Fail with every import of every module for which ``is_forbidden(module, imported)`` is true."""
    faults = [f"{module} imports {imported}" for module, imported in every_import() if is_forbidden(module, imported)]
    assert not faults, "\n".join(faults)


def test_every_module_belongs_to_a_layer() -> None:
    without_layer = [module for module, _ in MODULES if layer(module) is None and module not in PACKAGES]
    assert without_layer == [], "add them to the table"


def test_every_package_is_installed() -> None:
    """An editable install finds a package that setup.py does not list; no other install does."""
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (listed,) = (node.value for node in ast.walk(setup) if isinstance(node, ast.keyword) and node.arg == "packages")
    found = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("__init__.py")}
    assert set(ast.literal_eval(listed)) == {name.replace("/", ".") for name in found} | {"cocoa_tornado_cli"}


def test_every_module_imports_only_what_stands_below_it() -> None:
    def is_forbidden(module: str, imported: str) -> bool:
        own = layer(module)
        if own is None or module in PACKAGES or not imported.startswith(f"{PACKAGE}."):
            return False
        if imported.startswith(f"{PACKAGE}.cli"):
            return False
        target = layer(imported.removeprefix(f"{PACKAGE}."))
        return target != own and target not in MAY_IMPORT[own]

    assert_none_imports(is_forbidden)


def test_rules_import_nothing_that_waits_or_speaks_directly_or_not() -> None:
    faults = [
        way
        for module, _ in MODULES
        if layer(module) in PURE
        for imported, way in reach(module).items()
        if imported.split(".")[0] in FORBIDDEN_IN_RULES
    ]
    assert not faults, "\n".join(faults)


def test_no_modules_import_each_other_in_a_circle_not_even_for_types() -> None:
    circles = [
        way for module in graph() for imported in graph()[module] if (way := reach(imported).get(module)) is not None
    ]
    assert not circles, "\n".join(sorted(circles))


def test_the_table_of_layers_has_no_circle() -> None:
    below: dict[str, set[str]] = {name: set(may) for name, may in MAY_IMPORT.items()}
    for name in below:
        todo = list(below[name])
        for at in todo:
            new = below.get(at, set()) - below[name]
            below[name] |= new
            todo += new
    circles = {name for name, may in below.items() if name in may}
    assert circles == set()


# What the ports, the rules and what stands on them alone may reach beside Python's own library: what only computes.
COMPUTES = {"msgspec", "lz4", "snappy", "zstandard"}
# Adapters among them have a library of their own.
ADAPTERS = ("presence.redis", "relay.redis")
MIDDLE = (
    "rules",
    "errors",
    "counters",
    "routing",
    "hub",
    "presence",
    "relay",
    "brokers.port",
    "mailboxes.port",
    "speech.port",
)


def test_the_middle_reaches_no_library() -> None:
    faults = [
        way
        for module, _ in MODULES
        if module == "errors" or (module.startswith(MIDDLE) and not module.startswith(ADAPTERS))
        for imported, way in reach(module).items()
        if imported not in graph() and imported.split(".")[0] not in {*sys.stdlib_module_names, *COMPUTES, PACKAGE}
    ]
    assert not faults, "\n".join(faults)


def test_adapters_of_the_broker_do_not_import_each_other() -> None:
    def is_forbidden(module: str, imported: str) -> bool:
        if module == "brokers.memory":
            return "brokers.kafka" in imported or "brokers.confluent" in imported
        if module.startswith(("brokers.kafka", "brokers.confluent")) and "brokers.memory" in imported:
            return True
        # What both clients share stands in modules of its own.
        return module.startswith("brokers.confluent") and imported.split(".")[0] == "kafka"

    assert_none_imports(is_forbidden)


def test_only_the_composition_root_names_an_adapter() -> None:
    def is_forbidden(module: str, imported: str) -> bool:
        return layer(module) != "service" and any(
            imported.startswith(f"{PACKAGE}.{port}.")
            and not imported.endswith((".port", ".messages", ".grants", "_settings", "_url"))
            and not module.startswith(port)
            for port in ("brokers", "mailboxes", "presence", "relay")
        )

    assert_none_imports(is_forbidden)


def test_recognition_stays_out_of_the_gateways_process() -> None:
    light = {f"{PACKAGE}.speech.{name}" for name in ("port", "engines", "machine", "segmenter")}

    def is_forbidden(module: str, imported: str) -> bool:
        if module.startswith("speech") or not imported.startswith(f"{PACKAGE}.speech."):
            return False
        return imported not in (light | {f"{PACKAGE}.speech.pool"} if layer(module) == "service" else light)

    assert_none_imports(is_forbidden)


# What stands beside the package, and what of the repository each may import.
BESIDE = {
    "demo": {"cocoa_tornado", "bench"},
    "testing": {"cocoa_tornado"},
    "bench": {"cocoa_tornado", "cli", "testing"},
    "tests/bench": {"cocoa_tornado", "testing", "bench"},
    "tests": {"cocoa_tornado", "testing", "cli", "demo"},
}


def test_tests_and_benchmarks_share_code_only_through_testing() -> None:
    faults = []
    for path in (path for folder in BESIDE for path in (ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        allowed = next(may for folder, may in BESIDE.items() if name.startswith(f"{folder}/"))
        own = name.split("/")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported = {name.split(".")[0] for name in names} & {
                "cocoa_tornado",
                "cli",
                "demo",
                "testing",
                "bench",
                "tests",
            }
            faults += [f"{name} imports {found}" for found in imported - allowed - {own}]
    assert not faults, "\n".join(faults)
