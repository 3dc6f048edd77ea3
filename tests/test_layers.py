"""The direction of imports: cli -> service -> web -> hub, bridge -> rules and ports -> errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "cocoa_tornado"

# Each layer may import itself and what stands to the right of it in the table. The longest prefix of a module's name
# decides its layer.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "rules": {"errors"},
    "brokers.port": {"rules"},
    "brokers": {"brokers.port", "rules", "errors"},
    "identity": {"rules", "errors"},
    "speech.port": {"rules"},
    "speech.engines": {"speech", "errors"},
    "speech": {"speech.port", "speech.engines", "rules", "errors"},
    "settings": {"speech.engines", "rules", "errors"},
    "logs": set(),
    "hub": {"rules", "errors"},
    "metrics": {"hub", "brokers.port", "mailboxes.port", "speech.port", "rules"},
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
    "probe": {"identity", "rules", "errors"},
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
    "cli": {"service", "settings", "identity", "probe", "logs", "rules", "errors", ""},
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
            yield prefix if node.module else f"{prefix}.{node.names[0].name}"


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value) if isinstance(value, str) else "")
def test_every_module_imports_only_what_stands_below_it(module: str, path: Path) -> None:
    own = layer(module)
    if module in ("", "brokers", "identity", "mailboxes", "web", "probe"):
        return
    assert own is not None, f"{module} belongs to no layer: add it to the table"
    for imported in imports(module, path):
        if own == "rules":
            assert imported.split(".")[0] not in FORBIDDEN_IN_RULES, f"{module} imports {imported}"
        if not imported.startswith(f"{PACKAGE}.") or imported.startswith(f"{PACKAGE}.cli"):
            continue
        target = layer(imported.removeprefix(f"{PACKAGE}."))
        assert target == own or target in MAY_IMPORT[own], f"{module} ({own}) imports {imported} ({target})"


def test_adapters_of_the_broker_do_not_import_each_other() -> None:
    for module, path in modules():
        if module.startswith(("brokers.kafka", "brokers.confluent")):
            assert not any("brokers.memory" in name for name in imports(module, path))
        if module == "brokers.memory":
            assert not any("brokers.kafka" in name or "brokers.confluent" in name for name in imports(module, path))
        if module.startswith("brokers.confluent"):
            # What both clients share stands in modules of its own.
            assert not any(name.split(".")[0] == "kafka" for name in imports(module, path))


def test_only_the_composition_root_names_an_adapter() -> None:
    for module, path in modules():
        for port in ("brokers", "mailboxes"):
            if layer(module) == "service" or module.startswith(port):
                continue
            named = [
                name
                for name in imports(module, path)
                if name.startswith(f"{PACKAGE}.{port}.") and not name.endswith(".port")
            ]
            assert named == [], f"{module} imports {named}"


def test_recognition_stays_out_of_the_gateways_process() -> None:
    light = {f"{PACKAGE}.speech.{name}" for name in ("port", "engines", "segmenter")}
    for module, path in modules():
        if not module.startswith("speech"):
            allowed = light | {f"{PACKAGE}.speech.pool"} if module == "service" else light
            named = {name for name in imports(module, path) if name.startswith(f"{PACKAGE}.speech.")}
            assert named <= allowed, f"{module} imports {named - allowed}"
