"""YAML text -> nodes that know where they were written. PURE.

Strict: plain values are those of YAML 1.2's core schema ("no" is a word, 010 a ten, 1:30 a word), and tags, anchors,
aliases, merge keys, several documents and keys that are given twice are refused. Nothing is constructed but text,
numbers, booleans, null, lists and mappings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Scalar = str | int | float | bool | None

_PREFIX = "tag:yaml.org,2002:"
_PLAIN = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
)
"""Types that a plain value may have, by how it is written (YAML 1.2, 10.3.2), but for infinities and NaN."""


@dataclass(frozen=True)
class Node:
    """A value, where it was written ("line 4", or an option of the command line), and the folder of relative paths.

    `raw`: what was written on a command line, where text is text without quotes too.
    """

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    where: str
    folder: Path | None = None
    raw: str | None = None

    @property
    def kind(self) -> str:
        """What a reader would call it."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, tuple):
            return "a list"
        names = {bool: "a boolean", int: "an integer", float: "a number", str: "text"}
        return names.get(type(self.value), "nothing")


class _Loader(yaml.SafeLoader):
    """Composes nodes only; it never constructs an object."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases have no place in a recipe", event.start_mark
            )
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for something else than text."""


for _class in (_Loader, Dumper):
    _class.yaml_implicit_resolvers = {}  # not those of YAML 1.1, which the base class has
    for _name, _pattern, _first in _PLAIN:
        _class.add_implicit_resolver(_PREFIX + _name, re.compile(f"^(?:{_pattern})$"), _first)


def read_document(text: str, problems: list[str], *, folder: Path | None = None, where: str = "") -> Node:
    """The one document of a YAML text; what is wrong with it is added to `problems`.

    `where` names its place if it is no file, in place of line numbers.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        problems.append(f"{where or (f'line {mark.line + 1}' if mark else 'the file')}: {said}")
    except yaml.YAMLError as error:
        problems.append(f"{where or 'the file'}: {' '.join(str(error).split())}")
    except RecursionError:
        problems.append(f"{where or 'the file'}: it is nested too deeply")
    else:
        return Node({}, where or "the file", folder) if root is None else _node(root, problems, folder, where)
    return Node(None, where or "the file", folder)


def _node(node: Any, problems: list[str], folder: Path | None, where: str) -> Node:
    place = where or f"line {node.start_mark.line + 1}"
    kind = node.tag.removeprefix(_PREFIX)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return Node(_mapping(node, problems, folder, where), place, folder)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return Node(tuple(_node(item, problems, folder, where) for item in node.value), place, folder)
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        return Node(_SCALARS[kind](node.value), place, folder)
    problems.append(f"{place}: the tag {node.tag} has no place in a recipe")
    return Node(None, place, folder)


def _mapping(node: Any, problems: list[str], folder: Path | None, where: str) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for key, value in node.value:
        place = where or f"line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_PREFIX}str":
            problems.append(f"{place}: a key must be text")
        elif key.value in found:
            problems.append(f"{place}: {key.value} is given twice, first on {found[key.value].where}")
        else:
            made = _node(value, problems, folder, where)
            # The key's line is where a reader looks for a value that spans lines.
            found[key.value] = Node(made.value, place, folder)
    return found


_SCALARS: dict[str, Any] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    "float": float,
}


def with_value(root: Node, path: Sequence[str], value: Node) -> Node:
    """`root` with the value at a path of keys put in place; mappings on the way are made where they are missing."""
    if not path:
        return value
    inside = root.value if isinstance(root.value, dict) else {}
    below = inside.get(path[0], Node({}, value.where, value.folder))
    return Node({**inside, path[0]: with_value(below, path[1:], value)}, root.where, root.folder)
