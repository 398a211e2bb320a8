"""``openapi.json`` and ``docs/api-reference.md``, both made from the table of routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from gridx import __version__, errors
from gridx.schemas import ErrorEnvelope

from ..rules.access import Scope
from .base import STATUS, status_of
from .guard import WrongHost
from .routes import BYTES, JSON, ROUTES, Route

OPENAPI_FILE = "openapi.json"
REFERENCE_FILE = "docs/api-reference.md"
_EVERY_ROUTE: tuple[type[errors.GridXError], ...] = (
    errors.InvalidRequest,
    errors.Forbidden,
    WrongHost,
)
_BYTES_SCHEMA = {"type": "string", "format": "binary"}
_PATH_PARTS = {
    "job_id": "'job_' and 32 hexadecimal digits.",
    "user_id": "A user's name.",
    "digest": "BLAKE3 of the raw bytes, 64 hexadecimal digits.",
}


def _error_classes(route: Route) -> list[type[errors.GridXError]]:
    needs_login = () if route.scope is Scope.PUBLIC else (errors.AuthError,)
    return sorted(
        {*_EVERY_ROUTE, *needs_login, *route.errors}, key=lambda cls: (_status(cls), cls.code)
    )


def _status(cls: type[errors.GridXError]) -> int:
    return status_of(cls(""))


def _schema_of(kind: type[Any], known: dict[str, Any]) -> dict[str, Any]:
    if kind is dict:
        return {"type": "object"}
    (schema,), components = msgspec.json.schema_components(
        [kind], ref_template="#/components/schemas/{name}"
    )
    known.update(components)
    return dict(schema)


def _parameters(route: Route, known: dict[str, Any]) -> list[dict[str, Any]]:
    found = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARTS[name],
            "schema": {"type": "string"},
        }
        for name in route.path_names
    ]
    if route.query is not None:
        components: dict[str, Any] = {}
        _schema_of(route.query, components)
        schema = components[route.query.__name__]
        for name, part in schema["properties"].items():
            found.append(
                {
                    "name": name,
                    "in": "query",
                    "required": name in schema.get("required", ()),
                    "schema": part,
                }
            )
    return found


def _operation(route: Route, known: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"type": "string"}}
    if route.content_type == BYTES:
        content = {"schema": _BYTES_SCHEMA}
    if route.response is not None:
        content = {"schema": _schema_of(route.response, known)}
    kind = route.content_type.partition(";")[0]
    answers: dict[str, Any] = {
        str(status): {"description": text, "content": {kind: content}}
        for status, text in route.status.items()
    }
    by_status: dict[int, list[str]] = {}
    for cls in _error_classes(route):
        by_status.setdefault(_status(cls), []).append(cls.code)
    for status, codes in by_status.items():
        answers[str(status)] = {
            "description": "Error: " + ", ".join(f"`{code}`" for code in codes) + ".",
            "content": {JSON: {"schema": _schema_of(ErrorEnvelope, known)}},
        }
    operation: dict[str, Any] = {
        "operationId": route.endpoint.__name__,
        "summary": route.summary,
        "parameters": _parameters(route, known),
        "responses": answers,
    }
    if route.scope is not Scope.PUBLIC:
        operation["security"] = [{"token": [scope.value]} for scope in _scopes(route)]
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": _schema_of(route.request, known)}},
        }
    elif route.takes_bytes:
        operation["requestBody"] = {"required": True, "content": {BYTES: {"schema": _BYTES_SCHEMA}}}
    return operation


def _scopes(route: Route) -> list[Scope]:
    return [route.scope] if route.or_scope is None else [route.scope, route.or_scope]


def build_openapi(routes: Sequence[Route] = ROUTES) -> dict[str, Any]:
    """Return the description of the API in the form of OpenAPI 3.1."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Grid-X coordinator",
            "version": __version__,
            "summary": "Run code on other people's machines, and pay for it in credits.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost:8081"}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Not asked for in open mode on loopback.",
                }
            },
        },
    }


def openapi_text() -> str:
    """Return ``openapi.json`` as it is committed."""
    return json.dumps(build_openapi(), indent=2, ensure_ascii=False) + "\n"


# --- the page for people ---------------------------------------------------------------------


def _type_in_words(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type_in_words(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_in_words(schema.get('items', {}))}"
    if schema.get("type") == "object":
        return "object"
    text = schema.get("format") or schema.get("type", "anything")
    bounds = [
        f"{word} {schema[key]:g}"
        for key, word in (
            ("exclusiveMinimum", "above"),
            ("minimum", "from"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    return f"{text}, {' '.join(bounds)}" if bounds else str(text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default_in_words(schema: dict[str, Any], *, required: bool) -> str:
    if required:
        return "required"
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else "optional"


def _route_section(route: Route) -> list[str]:
    lines = [f"### `{route.method} {route.path}`", "", route.summary, ""]
    lines.append("- Scope: " + " or ".join(f"`{scope.value}`" for scope in _scopes(route)))
    if route.request is not None:
        name = route.request.__name__
        lines.append(f"- Body: [{name}](#{name.lower()})")
    elif route.takes_bytes:
        lines.append(f"- Body: `{BYTES}`")
    operation = _operation(route, {})
    for parameter in operation["parameters"]:
        kind = _type_in_words(parameter["schema"])
        where = "in the path" if parameter["in"] == "path" else "in the query"
        text = parameter.get("description") or kind
        if not parameter["required"]:
            text += f"; default {_default_in_words(parameter['schema'], required=False)}"
        lines.append(f"- `{parameter['name']}` {where}: {text}")
    answer = f"`{route.content_type.partition(';')[0]}`"
    if route.response is not None and route.response is not dict:
        answer = f"[{route.response.__name__}](#{route.response.__name__.lower()})"
    for status, text in route.status.items():
        lines.append(f"- {status}: {answer}. {text}")
    listed = ", ".join(f"{_status(cls)} `{cls.code}`" for cls in _error_classes(route))
    lines += [f"- Errors: {listed}", ""]
    return lines


def _schema_section(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", "", " ".join(schema.get("description", "").split()), ""]
    properties = schema.get("properties", {})
    if properties:
        required = schema.get("required", ())
        lines += ["| field | type | default |", "| --- | --- | --- |"]
        for field, part in properties.items():
            default = _default_in_words(part, required=field in required)
            lines.append(f"| `{field}` | {_cell(_type_in_words(part))} | {_cell(default)} |")
        lines.append("")
    return lines


def reference_text() -> str:
    """Return ``docs/api-reference.md`` as it is committed."""
    lines = [
        "# HTTP API",
        "",
        "<!-- Made by `python -m coordinator.main openapi`; edit coordinator/web/routes.py. -->",
        "",
        "The coordinator listens on `http://localhost:8081`. Bodies are JSON; a body that comes in"
        " is refused when it holds a field that is not listed here. Credits are numbers in"
        " credits, times are ISO 8601 in UTC.",
        "",
        "Blobs are bytes (`application/octet-stream`), as they are or as one zstd frame that states"
        " its size (`Content-Encoding: zstd`). A worker says who it is with the token of its"
        " welcome, `Authorization: Bearer TOKEN`, in open mode too.",
        "",
        "Notebooks and other live clients speak WebSocket at `/ws/client` on the same port"
        " (subprotocols `gridx.v1.msgpack` and `gridx.v1.json`); workers at `/ws/worker` on port"
        " 8080. Their messages are in `gridx/protocol.py`.",
        "",
        "## Routes",
        "",
    ]
    for route in ROUTES:
        lines += _route_section(route)
    lines += [
        "## Errors",
        "",
        'Every error has the body `{"error": {"code", "message", "hint", "details"}, "detail":'
        " message}`. The code never changes; the sentence may.",
        "",
        "| status | code | meaning |",
        "| --- | --- | --- |",
    ]
    for cls, status in sorted(STATUS.items(), key=lambda item: (item[1], item[0].code)):
        meaning = (cls.__doc__ or "").strip().splitlines()[0]
        lines.append(f"| {status} | `{cls.code}` | {_cell(meaning)} |")
    lines += ["", "## Bodies", ""]
    for name, schema in build_openapi()["components"]["schemas"].items():
        lines += _schema_section(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def generated_files() -> dict[str, str]:
    """Return the committed files by their path in the repository."""
    return {OPENAPI_FILE: openapi_text(), REFERENCE_FILE: reference_text()}
