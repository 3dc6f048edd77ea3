"""The OpenAPI document is valid, and has every route of the gateway and no other."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, cast, get_args

from openapi_spec_validator import OpenAPIV31SpecValidator
from tornado.web import Application, RequestHandler

from cocoa_tornado import __version__
from cocoa_tornado.admin.context import AdminContext
from cocoa_tornado.admin.requests import MAX_RECONNECT_S
from cocoa_tornado.admin.routes import admin_routes
from cocoa_tornado.admin.rows import MAX_PAGE
from cocoa_tornado.admin.trace_answers import STEPS
from cocoa_tornado.openapi.document import DOCUMENT, TEXT
from cocoa_tornado.openapi.schemas import EVENT_KINDS, OUTCOMES
from cocoa_tornado.openapi.schemas import STEPS as DOCUMENTED_STEPS
from cocoa_tornado.rules.device_events import KINDS
from cocoa_tornado.rules.live_events import LiveKind
from cocoa_tornado.rules.trace_memory import Outcome
from cocoa_tornado.web.access_log import AccessLog
from cocoa_tornado.web.application import make_application
from cocoa_tornado.web.handlers import WebContext
from cocoa_tornado.web.upgrading import Upgrader


def test_the_document_is_valid_openapi() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_it_is_served_as_it_is_and_names_the_version() -> None:
    assert json.loads(TEXT) == DOCUMENT
    assert DOCUMENT["info"]["version"] == __version__


def paths_of(pattern: str) -> Iterator[str]:
    """The paths of a route, with {} for each part that may be anything."""
    parts = re.split(r"\((\w+(?:\|\w+)+)\)", pattern)
    for chosen in itertools.product(*(part.split("|") if at % 2 else [part] for at, part in enumerate(parts))):
        yield re.sub(r"\([^()]*\)", "{}", "".join(chosen))


def application() -> Application:
    nothing = cast(Any, None)
    routes = admin_routes(cast(AdminContext, nothing))
    return make_application(cast(WebContext, nothing), cast(Upgrader, nothing), AccessLog(False), routes)


def test_every_route_and_method_is_in_the_document_and_no_other() -> None:
    served = set()
    for rule in application().wildcard_router.rules:
        handler = cast(type[RequestHandler], rule.target)
        methods = [
            method.lower()
            for method in RequestHandler.SUPPORTED_METHODS
            if getattr(handler, method.lower()) is not getattr(RequestHandler, method.lower())
        ]
        pattern = cast(Any, rule.matcher).regex.pattern.removesuffix("$")
        served |= {(path, method) for path in paths_of(pattern) for method in methods if method != "options"}
    documented = {
        (re.sub(r"\{\w+\}", "{}", path), method) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert {each for each in served if each[0] != "/" and not each[0].startswith("/console")} == documented


def test_what_the_code_can_say_is_what_is_documented() -> None:
    assert KINDS == EVENT_KINDS
    assert (*EVENT_KINDS, "message", "lost") == get_args(LiveKind)
    assert set(get_args(Outcome)) <= set(OUTCOMES)
    assert STEPS == DOCUMENTED_STEPS


def test_limits_are_those_of_the_code() -> None:
    parameters = {
        (operation["operationId"], each["name"]): each["schema"]
        for item in DOCUMENT["paths"].values()
        for operation in item.values()
        for each in operation.get("parameters", ())
        if "schema" in each
    }
    assert parameters["listDevices", "limit"]["maximum"] == MAX_PAGE
    assert parameters["closeDevice", "reconnect_after"]["maximum"] == MAX_RECONNECT_S


def test_every_operation_has_a_name_of_its_own_and_says_who_may_ask() -> None:
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert all("security" in operation for operation in operations)
