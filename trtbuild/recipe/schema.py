"""The dataclasses of a recipe -> JSON schema (draft 2020-12), which editors read. PURE.

It is published as recipes/recipe.schema.json. It says what a key may hold, not what goes together: `parse` and the plan
say that.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from trtbuild.recipe.binding import Words, default_of, members, plain
from trtbuild.recipe.contents import WORDS, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file; the same keys, types, names and defaults as `parse` has."""
    found = _object(Recipe, None, WORDS)
    return {"$schema": DIALECT, "title": "trtbuild recipe", **found}


def _object(cls: type, base: Any, words: Words) -> dict[str, Any]:
    """`base`: an instance whose values are the defaults, in place of the class's own."""
    properties: dict[str, Any] = {}
    required = []
    for name, (item, hint) in words.fields_of(cls).items():
        default = getattr(base, name) if base is not None else default_of(item)
        properties[name] = _value(hint, default, (cls, name), words)
        if default is MISSING:
            required.append(name)
    found: dict[str, Any] = {"type": "object"}
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
        found["description"] = " ".join(cls.__doc__.split())
    found |= {"properties": properties, "additionalProperties": False}
    return found | ({"required": required} if required else {})


def _value(hint: Any, default: Any, at: tuple[type, str], words: Words) -> dict[str, Any]:
    kinds = [_kind(kind, default, at, words) for kind in members(hint)]
    found: dict[str, Any] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if default is MISSING or is_dataclass(default):
        return found
    return {**found, "default": plain(default, words)}


def _kind(kind: Any, default: Any, at: tuple[type, str], words: Words) -> dict[str, Any]:
    if kind is type(None):
        return {"type": "null"}
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return _object(kind, default if isinstance(default, kind) else None, words)
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (tuple, list, Sequence):
        return {"type": "array", "items": _value(inside[0], MISSING, at, words)}
    if origin in (dict, Dict):
        value = _value(inside[1], MISSING, at, words)
        if at not in words.keys:
            return {"type": "object", "additionalProperties": value}
        return {"type": "object", "properties": dict.fromkeys(words.keys[at], value), "additionalProperties": False}
    choices = words.choices_of(*at, kind)
    return {"enum": list(choices)} if choices else {"type": _TYPES[kind]}
