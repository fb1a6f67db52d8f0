"""As much of JSON Schema as the docs use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["conforms", "schemas"]

ROOT = Path(__file__).parents[2]

KINDS: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def schemas(page: str) -> dict[str, Any]:
    """The schemas of a page in `docs/`, by name."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for block in re.findall(r"```json\n(\{\s*\"\$defs\".*?)```", text, re.DOTALL):
        found.update(json.loads(block)["$defs"])
    return found


def conforms(
    document: Any, schema: dict[str, Any], defs: dict[str, Any] | None = None, path: str = "$"
) -> None:
    """Assert that a document is as the schema says, and has nothing that it does not name."""
    defs = defs or {}
    if "$ref" in schema:
        schema = defs[schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        if document is None:
            assert {"type": "null"} in schema["anyOf"], path
            return
        (schema,) = (one for one in schema["anyOf"] if one != {"type": "null"})
        conforms(document, schema, defs, path)
        return
    kinds = schema.get("type")
    if kinds is not None:
        allowed = [KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
        is_bool = isinstance(document, bool) and bool not in allowed
        assert any(isinstance(document, kind) for kind in allowed), f"{path}: {document!r}"
        assert not is_bool, f"{path}: {document!r}"
    if "enum" in schema:
        assert document in schema["enum"], f"{path}: {document!r}"
    if "pattern" in schema:
        assert re.search(schema["pattern"], document), f"{path}: {document!r}"
    if isinstance(document, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        assert document.keys() >= {*schema.get("required", [])}, path
        if fields and others is None:
            assert document.keys() == fields.keys(), path
        for name, value in document.items():
            conforms(value, fields.get(name, others or {}), defs, f"{path}.{name}")
    if isinstance(document, list) and "items" in schema:
        for number, value in enumerate(document):
            conforms(value, schema["items"], defs, f"{path}[{number}]")
