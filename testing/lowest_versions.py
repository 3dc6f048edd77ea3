"""What differs between this environment and the one with the lowest versions::

    python -m testing.lowest_versions .venv-lowest

Prints one line for each library; nothing while setup.py allows no lower version than the newest. The tests then have
nothing to say about the lowest versions that they don't say about these.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

# Run by developers, and never by a test or the gateway.
TOOLS = frozenset({"mypy", "pip", "ruff", "setuptools", "uv", "wheel"})


def differences(installed: Mapping[str, str], lowest: Mapping[str, str]) -> list[str]:
    """
    :param installed: the versions of the newest libraries by their normalized names
    :param lowest: the same for the lowest; libraries that only the other environment has don't count
    """
    return [
        f"{name} {version}, not {installed.get(name, 'installed')}"
        for name, version in sorted(lowest.items())
        if name not in TOOLS and version != installed.get(name)
    ]


def versions(*folders: str) -> dict[str, str]:
    """The distributions in folders of packages, by their normalized names (PEP 503)."""
    return {
        re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(): found.version
        for found in distributions(path=list(folders))
    }


if __name__ == "__main__":
    [packages] = Path(sys.argv[1]).glob("lib/python*/site-packages")
    print("\n".join(differences(versions(*sys.path), versions(str(packages)))))
