"""What the parts of the document are written with. Pure.

The document is written in Python, and not in a file of JSON, so that limits stand in it as the code has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

Node: TypeAlias = dict[str, Any]
"""A JSON object of the document."""

NULL: Final[Node] = {"type": "null"}
RETRY_AFTER: Final[Node] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 0}}}
CHALLENGE: Final[Node] = {"WWW-Authenticate": {"schema": {"type": "string"}}}


def ref(name: str) -> Node:
    """A schema of ``components``."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str = "", **limits: object) -> Node:
    return _described({"type": "string", **limits}, description)


def time(description: str = "") -> Node:
    """RFC 3339."""
    return text(description, format="date-time")


def whole(description: str = "", least: int = 0, most: int | None = None, default: int | None = None) -> Node:
    """A whole number."""
    node: Node = {"type": "integer", "minimum": least}
    node |= {} if most is None else {"maximum": most}
    return _described(node | ({} if default is None else {"default": default}), description)


def number(description: str = "") -> Node:
    return _described({"type": "number"}, description)


def flag(description: str = "") -> Node:
    return _described({"type": "boolean"}, description)


def one_of(*values: str) -> Node:
    return {"type": "string", "enum": list(values)}


def array(items: Node, description: str = "", **limits: object) -> Node:
    return _described({"type": "array", "items": items, **limits}, description)


def mapping(values: Node, description: str = "") -> Node:
    """An object with any names."""
    return _described({"type": "object", "additionalProperties": values}, description)


def nullable(schema: Node) -> Node:
    """The schema, or null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, NULL]}


def record(properties: Mapping[str, Node], optional: Sequence[str] = (), description: str = "") -> Node:
    """An object with these properties and no others."""
    return _described(
        {
            "type": "object",
            "properties": dict(properties),
            "required": [name for name in properties if name not in optional],
            "additionalProperties": False,
        },
        description,
    )


def answer(description: str, schema: Node | None = None, media: str = "application/json") -> Node:
    """A response."""
    return {"description": description} | ({} if schema is None else {"content": {media: {"schema": schema}}})


def refusals(*statuses: int) -> Node:
    """Responses with an error body, by status."""
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def body(description: str, schema: Node, example: object = None, *, required: bool = True) -> Node:
    """What a request has to send, in JSON."""
    content = {"schema": schema} | ({} if example is None else {"example": example})
    return {"description": description, "required": required, "content": {"application/json": content}}


def in_query(name: str, schema: Node, description: str = "") -> Node:
    return _described({"name": name, "in": "query", "schema": schema}, description)


def json_in_query(name: str, schema: Node, description: str = "") -> Node:
    """A field whose value is JSON text."""
    return _described({"name": name, "in": "query", "content": {"application/json": {"schema": schema}}}, description)


def in_path(name: str, schema: Node, example: object, description: str = "") -> Node:
    node = {"name": name, "in": "path", "schema": schema, "required": True, "example": example}
    return _described(node, description)


def _described(node: Node, description: str) -> Node:
    return node | {"description": description} if description else node
