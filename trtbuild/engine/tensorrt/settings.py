"""NAME=VALUE -> BuildOptions, by the names of trtllm-build's options or of the fields themselves. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trtbuild.engine.options import BuildOptions
from trtbuild.engine.tensorrt.options_table import BY_NAME, REMOVED
from trtbuild.errors import PlanError

_BOOLEANS = {"true": True, "enable": True, "yes": True, "1": True, "false": False, "disable": False, "no": False}
_BOOLEANS["0"] = False
_OURS = "trtbuild decides it itself"


def with_settings(options: BuildOptions, settings: Sequence[str]) -> BuildOptions:
    """`options` changed by settings such as "gemm_plugin=auto", "plugin_config.reduce_fusion=true", "lora_dir=a,b".

    Raises:
        PlanError: every setting that is unknown, removed from 1.2, or has another type.
    """
    problems = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        path, problem = _path(name)
        if not equals and not problem:
            problem = f"{setting}: write it as {name}=VALUE"
        if problem:
            problems.append(problem)
            continue
        try:
            options = _assigned(options, path.split("."), text.strip())
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise PlanError(problems)
    return options


def setting_paths(cls: Any = BuildOptions, prefix: str = "") -> list[str]:
    """Every path that a setting may have."""
    hints, found = get_type_hints(cls), []
    for item in fields(cls):
        inner = hints[item.name]
        found += setting_paths(inner, f"{prefix}{item.name}.") if is_dataclass(inner) else [prefix + item.name]
    return found


def _path(name: str) -> tuple[str, str]:
    """(path of the field, "") or ("", why there is none)."""
    paths = setting_paths()
    short = {path.rpartition(".")[2]: path for path in paths}
    bare = name.rpartition(".")[2]
    if bare in REMOVED:
        return "", f"{name}: {REMOVED[bare]}"
    option = BY_NAME.get(name)
    if option is not None and option.field:
        return option.field, ""
    if name in paths or name in short:
        return (name if name in paths else short[name]), ""
    if option is not None:
        return "", f"{name}: {option.deprecated or _OURS}"
    near = get_close_matches(bare, [*short, *BY_NAME], n=1)
    return "", f"{name} is no option of trtllm-build 1.2.1" + (f"; did you mean {near[0]}?" if near else "")


def _assigned(value: Any, path: list[str], text: str) -> Any:
    head, *rest = path
    if rest:
        return replace(value, **{head: _assigned(getattr(value, head), rest, text)})
    return replace(value, **{head: _read(text, get_type_hints(type(value))[head])})


def _read(text: str, hint: Any) -> Any:
    """A text as a value of a field's type; ValueError says what was expected."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if type(None) in alternatives and text.lower() in ("none", "null", ""):
        return None
    kind = next(one for one in alternatives if one is not type(None))
    if get_origin(kind) is Literal:
        allowed = [str(choice) for choice in get_args(kind)]
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text
    if get_origin(kind) is tuple:
        return tuple(_read(part.strip(), get_args(kind)[0]) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"{text!r} is neither true nor false")
        return _BOOLEANS[text.lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
    return Path(text).expanduser() if kind is Path else text
