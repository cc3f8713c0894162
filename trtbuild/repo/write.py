"""Write a Triton repository: rendered configurations, our model.py files and a copy of the tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.manifest import sha256_file, tool_versions, write_manifest
from trtbuild.repo.info import EngineFacts, read_engine_facts
from trtbuild.repo.options import RepositoryOptions, check_options, template_values
from trtbuild.repo.render import MODELS, render_configs, templates_dir
from trtbuild.staging import check_not_input, check_output, staged_dir
from trtbuild.text.tokenizer import TOKENIZER_FILES, check_tokenizer

TOKENIZER_FOLDER = "preprocessing/tokenizer"
"""Inside of a model, as tritonserver takes every folder of the repository for one."""


def write_repository(
    engine_dir: Path, out: Path, tokenizer: Path, options: RepositoryOptions, *, force: bool = False
) -> EngineFacts:
    """Make the repository `out` for the engine; the engine itself stays where it is.

    Raises:
        EngineError: no engine or no tokenizer. PlanError: options that the engine cannot honour. OutputError.
    """
    check_output(out, force=force)
    check_not_input(out, engine_dir)
    engine = read_engine_facts(engine_dir)
    check_tokenizer(tokenizer)
    check_options(options, engine, _vocabulary(tokenizer))
    # The C++ backend wants a path that holds from anywhere; our model.py files take it from the repository.
    folder = TOKENIZER_FOLDER if engine.target == "cpu" else str(out.resolve() / TOKENIZER_FOLDER)
    configs = render_configs(template_values(options, engine, folder))
    with staged_dir(out, force=force) as partial:
        for model in MODELS:
            _write_model(partial / model, model, configs[model], engine)
        _copy_tokenizer(tokenizer, partial / TOKENIZER_FOLDER)
        source = {
            "engine": str(engine.directory),
            "engine_config_sha256": sha256_file(engine.directory / "config.json"),
            "target": engine.target,
            "world_size": engine.world_size,
        }
        chosen: dict[str, Any] = {**asdict(options), "parameters": dict(options.parameters)}
        write_manifest(partial, kind="repository", source=source, options=chosen, versions=tool_versions("jinja2"))
    return engine


def _write_model(folder: Path, model: str, config: str, engine: EngineFacts) -> None:
    """One model; its version directory must exist even where it is empty."""
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    code = templates_dir() / model / "1" / "model.py"
    if code.is_file() and (model != "tensorrt_llm" or engine.target == "cpu"):
        shutil.copyfile(code, version / "model.py")
    else:
        (version / ".keep").touch()


def _copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for pattern in TOKENIZER_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def _vocabulary(tokenizer: Path) -> int:
    """The highest token id + 1 by tokenizer.json; 0 where only another format is there."""
    path = tokenizer / "tokenizer.json"
    if not path.is_file():
        return 0
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        vocab = document["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else range(len(vocab))
        added = [int(token["id"]) for token in document.get("added_tokens", ())]
        return max([*ids, *added], default=-1) + 1
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise EngineError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
