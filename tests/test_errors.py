"""The tree of errors matches the picture in its module."""

from __future__ import annotations

import importlib
import pkgutil
import re
import textwrap

import cocoa_tornado
from cocoa_tornado import errors
from cocoa_tornado.errors import CocoaError


def drawn() -> dict[str, str]:
    """The base of each error in the picture at the top of the module."""
    assert errors.__doc__ is not None
    picture = textwrap.dedent(errors.__doc__.partition("::\n")[2])
    bases: dict[str, str] = {}
    line_of_descent: list[tuple[int, str]] = []
    for found in re.finditer(r"^([ |`-]*)([A-Z]\w+)\b", picture.partition("\n\n\n")[0], re.MULTILINE):
        depth, name = len(found[1]), found[2]
        line_of_descent = [above for above in line_of_descent if above[0] < depth]
        if line_of_descent:
            bases[name] = line_of_descent[-1][1]
        elif name != "CocoaError":
            break  # the text below the picture
        line_of_descent.append((depth, name))
    return bases


def defined() -> dict[str, str]:
    """The base of each error class in the package."""
    for module in pkgutil.walk_packages(cocoa_tornado.__path__, "cocoa_tornado."):
        importlib.import_module(module.name)
    bases: dict[str, str] = {}
    to_visit: list[type[CocoaError]] = [CocoaError]
    while to_visit:
        base = to_visit.pop()
        children = [child for child in base.__subclasses__() if child.__module__.startswith("cocoa_tornado.")]
        bases |= {child.__name__: base.__name__ for child in children}
        to_visit += children
    return bases


def test_the_tree_at_the_top_of_the_module_has_every_error_of_the_package() -> None:
    assert drawn() == defined()
