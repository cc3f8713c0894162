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
