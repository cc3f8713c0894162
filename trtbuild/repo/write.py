"""Write a Triton repository: rendered configurations, our model.py files and a copy of the tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError, PlanError
from trtbuild.finding import ERROR, Finding
from trtbuild.manifest import sha256_file, tool_versions, write_manifest
from trtbuild.repo.check.engine import engine_findings, parameter_findings
from trtbuild.repo.info import EngineFacts, read_engine_facts
from trtbuild.repo.options import RepositoryOptions, check_options, model_names, template_values
from trtbuild.repo.render import copy_code, parse_config, render_configs
from trtbuild.staging import check_not_input, check_output, staged_dir
from trtbuild.text.tokenizer import TOKENIZER_FILES, check_tokenizer

FIRST_VERSION = "1"


@dataclass(frozen=True)
class Chain:
    """One engine's models, ready to be written. `configs`: config.pbtxt by role; `names`: their folders."""

    engine: EngineFacts
    tokenizer: Path
    options: RepositoryOptions
    names: dict[str, str]
    configs: dict[str, str]

    @property
    def tokenizer_folder(self) -> str:
        return tokenizer_folder(self.options)

    def source(self) -> dict[str, Any]:
        """What the manifest says of it."""
        chosen = {**asdict(self.options), "parameters": dict(self.options.parameters)}
        return {**engine_source(self.engine), "models": sorted(self.names.values()), "options": chosen}


def write_repository(
    engine_dir: Path, out: Path, tokenizer: Path, options: RepositoryOptions, *, force: bool = False
) -> EngineFacts:
    """Make the repository `out` for the engine; the engine itself stays where it is.

    Raises:
        EngineError: no engine or no tokenizer. PlanError: options that the engine cannot honour. OutputError.
    """
    check_output(out, force=force)
    check_not_input(out, engine_dir)
    chain = plan_chain(engine_dir, out, tokenizer, options)
    with staged_dir(out, force=force) as partial:
        write_chain(partial, chain)
        described = chain.source()
        source = {**engine_source(chain.engine), "chains": {options.name: described}}
        write_manifest(
            partial, kind="repository", source=source, options=described["options"], versions=tool_versions("jinja2")
        )
    return chain.engine


def plan_chain(engine_dir: Path, out: Path, tokenizer: Path, options: RepositoryOptions) -> Chain:
    """Everything that will be written into `out`, checked.

    Raises:
        EngineError: no engine or no tokenizer. PlanError: options that the engine cannot honour.
    """
    engine = read_engine_facts(engine_dir)
    check_tokenizer(tokenizer)
    check_options(options, engine, vocabulary(tokenizer))
    folder = tokenizer_folder(options)
    # The C++ backend wants a path that holds from anywhere; our model.py files take it from the repository.
    named = folder if engine.target == "cpu" else str(out.resolve() / folder)
    names, configs = model_names(options), render_configs(template_values(options, engine, named))
    model = names["tensorrt_llm"]
    if problems := refused(_findings(parse_config(model, configs["tensorrt_llm"]), engine)):
        raise PlanError(problems)
    return Chain(engine, tokenizer, options, names, configs)


def _findings(config: Any, engine: EngineFacts) -> Iterator[Finding]:
    """What `trtbuild check` would find of tensorrt_llm; `parameters` of the options reach what no option is for."""
    values = {key: str(value.string_value) for key, value in config.parameters.items()}
    yield from parameter_findings(config.name, values, str(config.backend))
    yield from engine_findings(config.name, values, config, engine.document)


def refused(findings: Iterable[Finding], rules: tuple[str, ...] = ()) -> list[str]:
    """Errors, and findings of `rules`, as sentences."""
    return [
        f"{finding.rule}: expected {finding.expected}, found {finding.found}"
        + (f" ({finding.hint})" * bool(finding.hint))
        for finding in findings
        if finding.severity == ERROR or finding.rule in rules
    ]


def tokenizer_folder(options: RepositoryOptions) -> str:
    """Inside of a model, as tritonserver takes every folder of the repository for one."""
    return f"{model_names(options)['preprocessing']}/tokenizer"


def write_chain(folder: Path, chain: Chain) -> None:
    """The models of a chain as folders of `folder`."""
    for role, name in chain.names.items():
        _write_model(folder / name, role, chain.configs[role], chain.engine)
    _copy_tokenizer(chain.tokenizer, folder / chain.tokenizer_folder)


def engine_source(engine: EngineFacts) -> dict[str, Any]:
    """An engine as the manifest names it."""
    return {
        "engine": str(engine.directory),
        "engine_config_sha256": sha256_file(engine.directory / "config.json"),
        "target": engine.target,
        "world_size": engine.world_size,
    }


def _write_model(folder: Path, role: str, config: str, engine: EngineFacts) -> None:
    """One model; its version directory must exist even where it is empty."""
    version = folder / FIRST_VERSION
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    if role == "tensorrt_llm" and engine.target != "cpu":  # the C++ backend brings its own
        (version / ".keep").touch()
    else:
        copy_code(role, version)


def _copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for pattern in TOKENIZER_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def vocabulary(tokenizer: Path) -> int:
    """The highest token id + 1 by tokenizer.json; 0 where only another format is there.

    Raises:
        EngineError: the file cannot be read.
    """
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
