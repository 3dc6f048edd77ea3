"""What ``setup.py`` requires, what the code imports, and what ``conf/constraints.txt`` pins: the three agree."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .test_layers import ROOT, every_import

CONSTRAINTS = (ROOT / "conf/constraints.txt").read_text(encoding="utf-8")
OURS = ("cocoa_tornado", "cli", "cocoa_tornado_cli")

# Where the package goes by another name than the module.
PACKAGE_OF = {
    "snappy": "python-snappy",
    "google.api_core": "google-api-core",
    "google.auth": "google-auth",
    "google.cloud": "google-cloud-speech",
    "grpc": "grpcio",
    "jwt": "pyjwt",
    "kafka": "kafka-python",
}
# For which the gateway looks before it imports them.
EXTRA_OF = {
    "brokers.confluent": "librdkafka",
    "mailboxes.redis": "redis",
    "redis_store": "redis",
    "speech.decoding": "speech",
    "speech.pocketsphinx": "speech",
    "speech.segmenter": "speech",
    "speech.whisper": "whisper",
    "speech.google": "google",
}
MACHINES = [
    {
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": system,
        "platform_machine": machine,
    }
    for python in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


@pytest.fixture(scope="module")
def setup() -> Iterator[dict[str, Any]]:
    """The names that setup.py defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        yield runpy.run_path(str(ROOT / "setup.py"))


@cache
def pins() -> list[tuple[Requirement, list[str]]]:
    """Each requirement of the constraints, with its hashes."""
    found = []
    for entry in re.sub(r"\\\n|^ *#.*\n", "", CONSTRAINTS, flags=re.MULTILINE).splitlines():
        requirement, *hashes = entry.split("--hash=")
        found.append((Requirement(requirement), [text.strip() for text in hashes]))
    return found


def pinned(machine: dict[str, str]) -> dict[str, list[str]]:
    """By package, the versions that one machine gets."""
    versions: dict[str, list[str]] = {}
    for pin, _ in pins():
        if pin.marker is None or pin.marker.evaluate(machine):
            versions.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier))
    return versions


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(list(machine.values())[1:]))
def test_the_constraints_hold_one_allowed_version_of_every_requirement(
    setup: dict[str, Any], machine: dict[str, str]
) -> None:
    versions = pinned(machine)
    assert [name for name, found in versions.items() if len(found) > 1] == []
    for requirement in map(Requirement, [*setup["REQUIREMENTS"], *setup["EXTRAS"]["all"]]):
        version = versions[canonicalize_name(requirement.name)][0].removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} allows no {version}: run make constraints"


def test_every_constraint_is_an_exact_version_with_the_hashes_of_its_files() -> None:
    for pin, hashes in pins():
        assert re.fullmatch("==[0-9a-z.]+", str(pin.specifier)), pin
        assert hashes, pin
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", text) for text in hashes), pin


def test_the_constraints_name_no_index_and_no_place_on_a_disk() -> None:
    assert re.search("//|index|find-links| /|@", CONSTRAINTS) is None


def test_every_requirement_of_the_gateway_has_a_floor(setup: dict[str, Any]) -> None:
    for requirement in map(Requirement, [*setup["REQUIREMENTS"], *setup["EXTRAS"]["all"]]):
        assert ">=" in str(requirement.specifier), requirement


def test_the_extra_all_is_every_engine_and_client(setup: dict[str, Any]) -> None:
    others = ("speech", "whisper", "google", "redis", "librdkafka")
    assert set(setup["EXTRAS"]) == {*others, "all", "bench", "test", "test-engines"}
    assert set(setup["EXTRAS"]["all"]) == {text for extra in others for text in setup["EXTRAS"][extra]}


def test_every_library_that_is_imported_is_required_by_name(setup: dict[str, Any]) -> None:
    """What another library happens to bring along, it may drop."""
    faults = []
    for module, imported in every_import():
        top = imported.partition(".")[0]
        if top in sys.stdlib_module_names or top in OURS:
            continue
        package = PACKAGE_OF.get(".".join(imported.split(".")[: 2 if top == "google" else 1]), top)
        extra = next((extra for prefix, extra in EXTRA_OF.items() if module.startswith(prefix)), None)
        allowed = names(setup["REQUIREMENTS"] + (setup["EXTRAS"][extra] if extra else []))
        if canonicalize_name(package) not in allowed:
            faults.append(f"{module} imports {imported}, which {extra or 'the gateway'} does not require")
    assert not faults, "\n".join(faults)
