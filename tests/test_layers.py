"""The direction of imports: cli -> service -> web -> hub, bridge -> rules and ports -> errors.

Each test looks at every module and reports all that break its rule, by name.
"""

from __future__ import annotations

import ast
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
    "asking": set(),
    "errors": {"plain_text"},
    "rules": {"errors", "plain_text"},
    "brokers.port": {"rules"},
    "brokers": {"asking", "brokers.port", "rules", "errors", "plain_text"},
    "identity": {"rules", "errors", "plain_files", "plain_text"},
    "speech.port": {"rules"},
    "speech.engines": {"speech", "errors", "plain_text"},
    "speech": {"speech.port", "speech.engines", "rules", "errors"},
    "settings": {"speech.engines", "rules", "errors", "plain_files", "plain_text"},
    "logs": set(),
    "hub": {"rules", "errors"},
    "metrics": {"", "hub", "brokers.port", "mailboxes.port", "speech.port", "rules"},
    "mailboxes.port": {"rules"},
    "mailboxes": {"mailboxes.port", "rules", "errors"},
    "sweeper": {"mailboxes.port", "errors"},
    "mailroom": {"hub", "metrics", "brokers.port", "mailboxes.port", "rules", "errors"},
    "arrivals": {"rules"},
    "transcriber": {"arrivals", "metrics", "brokers.port", "speech.port", "rules", "errors"},
    "bridge": {"hub", "metrics", "brokers.port", "rules"},
    "web": {
        "hub",
        "bridge",
        "transcriber",
        "metrics",
        "brokers.port",
        "mailboxes.port",
        "speech.port",
        "speech.segmenter",
        "identity",
        "rules",
        "errors",
    },
    "probe": {"identity", "rules", "errors", "plain_text"},
    "service": {
        "web",
        "bridge",
        "mailroom",
        "mailboxes",
        "mailboxes.port",
        "sweeper",
        "arrivals",
        "transcriber",
        "speech",
        "speech.port",
        "speech.engines",
        "hub",
        "metrics",
        "logs",
        "brokers",
        "brokers.port",
        "identity",
        "settings",
        "rules",
        "errors",
    },
    "cli": {
        "asking",
        "service",
        "settings",
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

# Rules decide; they neither wait nor speak to anything.
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
PACKAGES = {"", "brokers", "identity", "mailboxes", "web", "probe"}


def layer(module: str) -> str | None:
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


def assert_none_imports(is_forbidden: Callable[[str, str], bool]) -> None:
    """Fail with every import of every module for which ``is_forbidden(module, imported)`` is true."""
    faults = [f"{module} imports {imported}" for module, imported in every_import() if is_forbidden(module, imported)]
    assert not faults, "\n".join(faults)


def test_every_module_belongs_to_a_layer() -> None:
    without_layer = [module for module, _ in MODULES if layer(module) is None and module not in PACKAGES]
    assert without_layer == [], "add them to the table"


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


def test_rules_import_nothing_that_waits_or_speaks() -> None:
    assert_none_imports(
        lambda module, imported: layer(module) == "rules" and imported.split(".")[0] in FORBIDDEN_IN_RULES
    )


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
            imported.startswith(f"{PACKAGE}.{port}.") and not imported.endswith(".port") and not module.startswith(port)
            for port in ("brokers", "mailboxes")
        )

    assert_none_imports(is_forbidden)


def test_recognition_stays_out_of_the_gateways_process() -> None:
    light = {f"{PACKAGE}.speech.{name}" for name in ("port", "engines", "machine", "segmenter")}

    def is_forbidden(module: str, imported: str) -> bool:
        if module.startswith("speech") or not imported.startswith(f"{PACKAGE}.speech."):
            return False
        return imported not in (light | {f"{PACKAGE}.speech.pool"} if module == "service" else light)

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
