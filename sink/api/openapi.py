"""The OpenAPI document, made of the endpoints and the structs they take and give."""

import functools
import re
from typing import Any, get_type_hints

import msgspec

from schemas import http
from sink.api.endpoints import ENDPOINTS, PREFIX, Endpoint
from sink.api.refusing import MEANINGS

VERSION = "1.0.0"
"""Of the API: within /api/v1 paths, parameters and fields are only added."""
_REF = "#/components/schemas/{name}"
_PLACES = {"id": "The `flow` of a verdict or a flow.", "revision": "Its number."}


@functools.cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1, whose schemas are JSON Schema 2020-12."""
    types: list[Any] = [http.Error]
    for one in ENDPOINTS:
        types += [kind for kind in (one.answer, one.asked, one.body) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = {str(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for one in ENDPOINTS:
        paths.setdefault(f"{PREFIX}/{one.path}", {})[one.method.lower()] = _operation(one, by_type, components)
    asked = {one.asked.__name__ for one in ENDPOINTS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ztlens", "version": VERSION, "description": (http.__doc__ or "").strip()},
        "paths": paths,
        "components": {"schemas": {name: kind for name, kind in components.items() if name not in asked}},
    }


def _operation(one: Endpoint, by_type: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    answer = by_type[str(one.answer)]
    content = {media: {"schema": answer if media == "application/json" else {"type": "string"}} for media in one.media}
    out: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": _PLACES[name]}
            for name in re.findall(r"{(\w+)}", one.path)
        ],
        "responses": {"200": {"description": "The answer.", "content": content}},
    }
    fields = components[one.asked.__name__].get("properties", {})
    for name in get_type_hints(one.asked):
        out["parameters"].append({"name": name, "in": "query", "required": False, "schema": fields[name]})
    if one.body is not None:
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": by_type[str(one.body)]}}}
    refused = by_type[str(http.Error)]
    for status, meaning in MEANINGS.items():
        if status != 404 or "{" in one.path or one.name in ("policy", "diff"):
            out["responses"][str(status)] = {
                "description": f"An error: {meaning}.", "content": {"application/json": {"schema": refused}}
            }  # fmt: skip
    return out
