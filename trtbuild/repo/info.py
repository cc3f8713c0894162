"""What a repository must know of an engine, read from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trtbuild.errors import EngineError

Target = Literal["cpu", "tensorrt"]


@dataclass(frozen=True)
class EngineFacts:
    """Limits that a repository must not exceed. Same file for TensorRT and cpu engines."""

    directory: Path
    target: Target
    world_size: int
    vocab_size: int
    max_batch_size: int
    max_beam_width: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    logits_dtype: str
    paged_context: bool
    gathers_context_logits: bool
    document: Mapping[str, Any] = field(repr=False, compare=False)
    """All of config.json."""


def read_engine_facts(directory: Path) -> EngineFacts:
    """Read and check an engine directory.

    Raises:
        EngineError: it is not an engine, or files of ranks are missing.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(
            f"{directory} is not an engine: it has no config.json", hint="Make one with `trtbuild engine MODEL -o DIR`."
        ) from error
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or not {"pretrained_config", "build_config"} <= config.keys():
        hint = (
            "This looks like a Hugging Face model: build its engine first, or serve it as it is with --target llmapi."
            if isinstance(config, dict) and "architectures" in config
            else ""
        )
        raise EngineError(
            f"{directory} is not an engine: config.json lacks pretrained_config or build_config", hint=hint
        )
    if problems := misstated(config):
        raise EngineError(f"{path}: {'; '.join(problems)}", hint="Build the engine again.")
    try:
        facts = _facts(directory, config)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} lacks or misstates {error}") from error
    missing = [f"rank{r}.engine" for r in range(facts.world_size) if not (directory / f"rank{r}.engine").is_file()]
    if missing:
        raise EngineError(
            f"engine {directory} lacks {', '.join(missing)} of its {facts.world_size} ranks", hint="Build it again."
        )
    return facts


_SECTIONS = (
    ("pretrained_config",),
    ("pretrained_config", "mapping"),
    ("build_config",),
    ("build_config", "plugin_config"),
    ("build_config", "lora_config"),
    ("trtbuild",),
)
_NUMBERS = (
    ("pretrained_config", "vocab_size"),
    *(("build_config", f"max_{name}") for name in ("batch_size", "beam_width", "input_len", "seq_len", "num_tokens")),
    ("build_config", "max_prompt_embedding_table_size"),
    ("build_config", "speculative_decoding_mode"),
    ("build_config", "lora_config", "max_lora_rank"),
)


def misstated(config: Mapping[str, Any]) -> list[str]:
    """What config.json of an engine says in another form than TensorRT-LLM writes it, as far as it is read here.

    >>> misstated({"pretrained_config": {"vocab_size": "many"}, "build_config": []})
    ["pretrained_config.vocab_size 'many' is not a whole number", 'build_config [] is not an object']
    """
    problems = []
    for path in _NUMBERS:
        value = _at(config, path)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            problems.append(f"{'.'.join(path)} {value!r} is not a whole number")
    for path in _SECTIONS:
        value = _at(config, path)
        if value is not None and not isinstance(value, dict):
            problems.append(f"{'.'.join(path)} {value!r} is not an object")
    return problems


def _at(config: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of keys; None where it, or an object on the way, is missing."""
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _facts(directory: Path, config: dict[str, Any]) -> EngineFacts:
    pretrained, build = config["pretrained_config"], config["build_config"]
    mapping = pretrained["mapping"]
    sizes = [int(mapping.get(name) or 1) for name in ("tp_size", "pp_size", "cp_size")]
    plugins = build.get("plugin_config") or {}
    target: Target = "cpu" if (config.get("trtbuild") or {}).get("target") == "cpu" else "tensorrt"
    return EngineFacts(
        directory=directory.resolve(),
        target=target,
        world_size=sizes[0] * sizes[1] * sizes[2],
        vocab_size=int(pretrained["vocab_size"]),
        max_batch_size=int(build["max_batch_size"]),
        max_beam_width=int(build.get("max_beam_width") or 1),
        max_input_len=int(build["max_input_len"]),
        max_seq_len=int(build["max_seq_len"]),
        max_num_tokens=int(build.get("max_num_tokens") or build["max_input_len"]),
        logits_dtype=str(pretrained.get("logits_dtype") or "float32"),
        paged_context=target == "cpu" or bool(plugins.get("use_paged_context_fmha")),
        gathers_context_logits=bool(build.get("gather_context_logits")),
        document=config,
    )
