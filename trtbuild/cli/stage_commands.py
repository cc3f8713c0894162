"""A recipe's stages as commands of their own: the options of a stage -> the flags of its command.

A field's flag is its name with dashes, but for those in `_FLAGS`; whether the command has it is asked of the command
itself. Where a field that is not at its default has no flag, there is no such command; `trtbuild run --until` is it.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trtbuild.recipe.binding import default_of
from trtbuild.recipe.contents import WORDS, Recipe
from trtbuild.spec import LayerMethod

_FLAGS: dict[tuple[str, str], str] = {
    ("convert", "tp_size"): "--tp",
    ("convert", "pp_size"): "--pp",
    ("convert", "moe_tp_size"): "--moe-tp",
    ("convert", "moe_ep_size"): "--moe-ep",
    ("convert", "quant_layers"): "--quant-layer",
    ("calibration", "text"): "--calib",
    ("calibration", "samples"): "--calib-samples",
    ("calibration", "length"): "--calib-length",
    ("calibration", "seed"): "--calib-seed",
    ("calibration", "chat"): "--calib-chat",
    ("calibration", "search"): "--calib-search",
    ("verify", "one_rank"): "--tp1",
    ("launch", "timeout_s"): "--timeout",
    ("launch", "hang_s"): "--hang",
    ("repo", "triton_max_batch_size"): "--max-batch-size",
    ("repo", "max_tokens_in_paged_kv_cache"): "--max-tokens-in-kv",
    ("repo", "kv_cache_free_gpu_mem_fraction"): "--kv-mem-fraction",
    ("repo", "parameters"): "--parameter",
    ("serve", "ready_timeout_s"): "--ready-timeout",
    ("serve", "exit_timeout_s"): "--exit-timeout",
}


def stage_command(stage: str, recipe: Recipe, work: Path) -> list[str] | None:
    """The command that does one stage of a recipe, or None where its flags cannot say all of it."""
    model = [recipe.model, *(["--revision", recipe.revision] if recipe.revision else [])]
    target = ["--target", recipe.target]
    made = {name: str(work / name) for name in ("checkpoint", "engine", "repo")}
    parts: dict[str, tuple[list[str], tuple[str, ...]]] = {
        "plan": ([*model, *target], ("convert",)),
        "checkpoint": ([*model, "-o", made["checkpoint"], *target], ("convert", "calibration")),
        "verify": ([made["checkpoint"], "--against", *model], ("verify",)),
        "engine": ([made["checkpoint"], "-o", made["engine"], *target], ("build", "launch")),
        "repo": ([made["engine"], "-o", made["repo"]], ("repo",)),
    }
    if stage not in parts:
        return None
    first, sections = parts[stage]
    try:
        first += ["--tokenizer", _tokenizer(recipe)] if stage == "repo" else []
        parts_of = {"convert": recipe.options}
        given = [
            word
            for section in sections
            for word in _flags(stage, section, parts_of.get(section, getattr(recipe, section)))
        ]
    except _NoFlag:
        return None
    return ["trtbuild", stage, *first, *given]


def serve_command(recipe: Recipe, work: Path) -> list[str]:
    """The command that serves what a recipe made."""
    return ["trtbuild", "serve", str(work / "repo"), *_flags("serve", "serve", recipe.serve)]


class _NoFlag(Exception):
    """A field that is not at its default and has no flag."""


def _tokenizer(recipe: Recipe) -> str:
    """The model's folder; where that of a hub model is, only a run knows."""
    local = Path(recipe.model.removeprefix("local:")).expanduser()
    if not local.is_dir():
        raise _NoFlag(recipe.model)
    return str(local)


def _flags(command: str, section: str, options: Any) -> Iterator[str]:
    """Flags of every field that is not at the default of the command."""
    known = _known_flags(command)
    for item in fields(options):
        value = getattr(options, item.name)
        if (type(options), item.name) in WORDS.elsewhere or value == _usual(section, item):
            continue
        flag = _FLAGS.get((section, item.name), "--" + item.name.replace("_", "-"))
        if section == "verify" and item.name == "gates":
            for gate, limit in value.items():
                yield from () if limit is None else ("--" + gate.replace("_", "-"), f"{limit:g}")
            continue
        if section == "build" and flag not in known:
            for setting in _settings(value, default_of(item), item.name):
                yield from ("--set", setting)
            continue
        negative = known.get(flag)
        if flag not in known or (value is False and not negative):
            raise _NoFlag(flag)
        if isinstance(value, bool):
            yield flag if value else str(negative)
        elif isinstance(value, tuple | Dict):
            for word in _words(value):
                yield from (flag, word)
        else:
            yield from (flag, str(value))


def _settings(value: Any, usual: Any, path: str) -> Iterator[str]:
    """ "path=value" of an option of the engine build, or of each of those inside that are not at their default."""
    if is_dataclass(value):
        for item in fields(value):
            inner = getattr(value, item.name), getattr(usual, item.name)
            yield from _settings(*inner, f"{path}.{item.name}") if inner[0] != inner[1] else ()
    elif isinstance(value, tuple):
        yield f"{path}={','.join(map(str, value))}"
    else:
        yield f"{path}={str(value).lower() if isinstance(value, bool | None) else value}"


def _usual(section: str, item: Any) -> Any:
    """The default of a field where the command line leaves it out, which may be the recipe's own (quant: auto)."""
    own = next(default_of(field) for field in fields(Recipe) if field.name == section)
    return getattr(own, item.name) if own is not None else default_of(item)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Dict):
        yield from (f"{key}={item}" for key, item in value.items())
        return
    for item in value:
        if isinstance(item, str):
            yield item
            continue
        if not isinstance(item, LayerMethod):
            raise _NoFlag(str(item))
        group = f":{item.group_size}" if item.group_size is not None else ""
        yield f"{item.pattern}={item.method}{group}"


@lru_cache
def _known_flags(command: str) -> dict[str, str | None]:
    """Flag -> its negative, or None, of every option of a command."""
    import typer.main

    from trtbuild.cli.app import app

    group: Any = typer.main.get_command(app)
    options = [parameter for parameter in group.commands[command].params if parameter.param_type_name == "option"]
    return {flag: next(iter(option.secondary_opts), None) for option in options for flag in option.opts}
