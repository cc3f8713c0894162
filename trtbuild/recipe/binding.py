"""Nodes of a document <-> frozen dataclasses, by their fields and type hints. PURE.

Nothing is listed by name: a field that an options class gets is a key of recipes from then on. What a hint cannot say
(the names that a text may be, the keys of a mapping) comes as `Words`. Every problem is found before one is reported.
"""

from __future__ import annotations

import types
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trtbuild.recipe.document import Node

_SHOWN = 12
_WANTED = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Words:
    """What type hints leave open, by (class, field).

    `choices`: values that a field may have. `keys`: keys of a mapping. `elsewhere`: fields that are no key of recipes,
    and the sentence that says what is.
    """

    choices: Dict[tuple[type, str], tuple[Any, ...]] = field(default_factory=dict)
    keys: Dict[tuple[type, str], tuple[str, ...]] = field(default_factory=dict)
    elsewhere: Dict[tuple[type, str], str] = field(default_factory=dict)

    def fields_of(self, cls: type) -> dict[str, tuple[Field[Any], Any]]:
        """Name -> (field, its resolved hint) of every field that is a key of recipes."""
        hints = get_type_hints(cls)
        return {f.name: (f, hints[f.name]) for f in fields(cls) if f.init and (cls, f.name) not in self.elsewhere}

    def choices_of(self, cls: type, name: str, hint: Any) -> tuple[Any, ...]:
        """The values of a field, empty where any of its type will do."""
        if get_origin(hint) is Literal:
            return get_args(hint)
        return self.choices.get((cls, name), ())


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a hint, None as `NoneType`; one that is no union is its only alternative."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def default_of(item: Field[Any]) -> Any:
    """The default of a field, or MISSING."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


class Binder:
    """Binds nodes to classes and collects what is wrong in `problems`, by line and path."""

    def __init__(self, words: Words, root: type) -> None:
        self.problems: list[str] = []
        self._words = words
        self._root = root

    def bind(self, node: Node, cls: type, base: Any = None, path: str = "") -> Any:
        """An instance of `cls`: `base`, or the class's defaults, with what the node says."""
        known = self._words.fields_of(cls)
        if not isinstance(node.value, dict):
            self._say(node, path, f"must be a mapping, not {node.kind}")
            return base
        given: dict[str, Any] = {}
        for name, value in node.value.items():
            inner = f"{path}.{name}" if path else name
            if name not in known:
                self.problems.append(f"{value.where}: {self._unknown(cls, inner, name, known)}")
                continue
            item, hint = known[name]
            default = getattr(base, name) if base is not None else default_of(item)
            given[name] = self._value(value, hint, default, (cls, name), inner)
        if base is not None:
            return replace(base, **given)
        lacking = [name for name, (item, _) in known.items() if default_of(item) is MISSING and name not in given]
        if lacking:
            self.problems.append(f"{node.where}: {path or 'the recipe'} lacks {', '.join(lacking)}")
            return None
        return cls(**given)

    def _value(self, node: Node, hint: Any, default: Any, at: tuple[type, str], path: str) -> Any:
        alternatives = members(hint)
        if node.value is None and type(None) in alternatives:
            return None
        alternatives = tuple(kind for kind in alternatives if kind is not type(None))
        fitting = [kind for kind in alternatives if _fits(node, kind)]
        if not fitting and str in alternatives and node.raw is not None:
            node, fitting = replace(node, value=node.raw), [str]
        if not fitting:
            wanted = " or ".join(_wanted(kind) for kind in alternatives)
            self._say(node, path, f"must be {wanted}, not {_shown(node)}")
            return default
        kind = fitting[0]
        choices = self._words.choices_of(*at, kind)
        if choices and not isinstance(node.value, dict | tuple) and node.value not in choices:
            near = nearest(str(node.value), [str(choice) for choice in choices])
            self._say(node, path, f"unknown {node.value!r}{near or '; known: ' + _list(choices)}")
            return default
        if is_dataclass(kind):
            assert isinstance(kind, type)
            return self.bind(node, kind, default if isinstance(default, kind) else None, path)
        origin = get_origin(kind)
        if origin in (tuple, list, Sequence):
            return self._sequence(node, kind, at, path)
        if origin in (dict, Dict):
            return self._mapping(node, kind, default, at, path)
        if kind is Path:
            return Path(node.folder or "", Path(str(node.value)).expanduser())
        return float(node.value) if kind is float else node.value  # type: ignore[arg-type]

    def _sequence(self, node: Node, kind: Any, at: tuple[type, str], path: str) -> Any:
        assert isinstance(node.value, tuple)
        made = [
            self._value(item, get_args(kind)[0], None, at, f"{path}[{number}]")
            for number, item in enumerate(node.value)
        ]
        return made if get_origin(kind) is list else tuple(made)

    def _mapping(self, node: Node, kind: Any, default: Any, at: tuple[type, str], path: str) -> dict[str, Any]:
        assert isinstance(node.value, dict)
        known = self._words.keys.get(at)
        made = {}
        for name, value in node.value.items():
            if known is not None and name not in known:
                near = nearest(name, known) or f"; known: {_list(known)}"
                self.problems.append(f"{value.where}: {path}.{name} is not known{near}")
            else:
                made[name] = self._value(value, get_args(kind)[1], None, at, f"{path}.{name}")
        return made

    def _unknown(self, cls: type, path: str, name: str, known: Dict[str, Any]) -> str:
        """Why a key is unknown, and which one was meant: here, or in another section of the recipe."""
        if (cls, name) in self._words.elsewhere:
            return f"{path}: {self._words.elsewhere[cls, name]}"
        homes = [home for home in self._homes(name) if home != path]
        if homes:
            return f"{path} is not known here; did you mean {homes[0]}?"
        return f"{path} is not known{nearest(name, list(known)) or f'; known: {_list(list(known))}'}"

    def _homes(self, name: str) -> list[str]:
        """Paths of keys with this very name in the sections of the recipe."""
        sections = self._words.fields_of(self._root)
        found = [name] if name in sections else []
        for section, (_, hint) in sections.items():
            classes = [kind for kind in members(hint) if is_dataclass(kind)]
            found += [f"{section}.{name}" for kind in classes if name in self._words.fields_of(kind)]  # type: ignore[arg-type]
        return found

    def _say(self, node: Node, path: str, text: str) -> None:
        self.problems.append(f"{node.where}: {path + ': ' if path else ''}{text}")


def nearest(name: str, known: Sequence[str]) -> str:
    """ "; did you mean X?", or nothing where no known name is near."""
    found = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def plain(value: Any, words: Words) -> Any:
    """An instance as mappings, lists and scalars, with every field that is a key of recipes; `bind` gives it back."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name), words) for name in words.fields_of(type(value))}
    if isinstance(value, Dict):
        return {str(key): plain(item, words) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, words) for item in value]
    return str(value) if isinstance(value, Path) else value


def _fits(node: Node, kind: Any) -> bool:
    """Whether a node's value is of the kind that a hint names; an integer is a number too, and a boolean neither."""
    value = node.value
    origin = get_origin(kind)
    if is_dataclass(kind) or origin in (dict, Dict):
        return isinstance(value, dict)
    if origin in (tuple, list, Sequence):
        return isinstance(value, tuple)
    if origin is Literal:
        return any(type(value) is type(choice) for choice in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (str, Path):
        return isinstance(value, str)
    if kind in (bool, int):
        return type(value) is kind
    raise TypeError(f"recipes cannot hold a field of type {kind}")


def _wanted(kind: Any) -> str:
    if is_dataclass(kind) or get_origin(kind) in (dict, Dict):
        return "a mapping"
    if get_origin(kind) in (tuple, list, Sequence):
        return "a list"
    return "one of " + _list(get_args(kind)) if get_origin(kind) is Literal else _WANTED[kind]


def _shown(node: Node) -> str:
    return node.kind if isinstance(node.value, dict | tuple) or node.value is None else repr(node.value)


def _list(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(str(name) for name in names[:_SHOWN]) + more
