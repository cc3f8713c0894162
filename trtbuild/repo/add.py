"""More models, or another version of one, into a repository that exists (transaction.py: all of it or nothing).

No file that is there is written over, but for three lines of a chain that gets a version: the version policy of its
tensorrt_llm, where one is asked for, and the max_input_len and max_seq_len of its preprocessing, where the engines
differ in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError, OutputError, PlanError, some
from trtbuild.repo.check.engine import engine_findings
from trtbuild.repo.info import EngineFacts, read_engine_facts
from trtbuild.repo.llmapi import LlmapiOptions, plan_llmapi, write_llmapi
from trtbuild.repo.options import RepositoryOptions, model_names, policy_text
from trtbuild.repo.render import copy_code, parse_config
from trtbuild.repo.transaction import beside, locked, move_in
from trtbuild.repo.write import engine_source, plan_chain, refused, tokenizer_folder, vocabulary, write_chain
from trtbuild.versions import ENGINE_FILE, own_engines, served_versions

_POLICY = re.compile(r"^version_policy: \{.*\}$", re.MULTILINE)
_LENGTH = r'(key: "{}"\s*value {{ string_value: )"(\d+)"'


@dataclass(frozen=True)
class AddedVersion:
    """`served`: the versions of the model that a server loads now."""

    engine: EngineFacts
    model: str
    version: int
    served: tuple[int, ...]


def add_models(engine_dir: Path, out: Path, tokenizer: Path, options: RepositoryOptions) -> EngineFacts:
    """The models of another engine, under names that begin with `options.name`.

    Raises:
        EngineError: `out` is no repository of ours, or there is no engine or tokenizer. OutputError: a model of that
        name is there. PlanError: options that the engine cannot honour, or targets that one server cannot run.
    """
    chain = plan_chain(engine_dir, out, tokenizer, options)
    with locked(out) as manifest:
        _check_beside(out, manifest, chain.engine.target, list(chain.names.values()))
        with beside(out) as partial:
            write_chain(partial, chain)
            order = [name for role, name in chain.names.items() if role != "ensemble"] + [chain.names["ensemble"]]
            moves = [(partial / name, out / name) for name in order]
            chains = {**manifest["source"].get("chains", {}), options.name: chain.source()}
            move_in(partial, out, manifest, moves, chains)
    return chain.engine


def add_llmapi(source: Path, out: Path, options: LlmapiOptions) -> str:
    """A model of the LLM class for the checkpoint `source`; returns its name.

    Raises:
        EngineError: `out` is no repository of ours, or `source` no checkpoint. OutputError: a model of that name is
        there. PlanError: options that do not fit, or targets that one server cannot run.
    """
    model = plan_llmapi(source, options)
    with locked(out) as manifest:
        _check_beside(out, manifest, "llmapi", [model.name])
        with beside(out) as partial:
            write_llmapi(partial, model)
            chains = {**manifest["source"].get("chains", {}), options.name: model.chain}
            move_in(partial, out, manifest, [(partial / model.name, out / model.name)], chains)
    return model.name


def _check_beside(out: Path, manifest: Mapping[str, Any], target: str, names: list[str]) -> None:
    """Whether models `names` of `target` may join those of a repository.

    Raises:
        PlanError: one server cannot run both. OutputError: a model of that name is there.
    """
    chains = manifest["source"].get("chains", {}).values()
    there = {str(chain.get("target", "")) for chain in chains} or {str(manifest["source"]["target"])}
    if "tensorrt" in there | {target} and there != {target}:
        said = f"{out} is of the {some(sorted(there))} target, the new models are of {target}"
        raise PlanError([f"{said}: ranks of TensorRT-LLM's backend are tritonservers of their own"])
    taken = [name for name in names if (out / name).exists()]
    if taken:
        hint = "Give the new ones a --name of their own; for a new version of a model, --model-version."
        raise OutputError(f"{out} has {', '.join(taken)} already", hint=hint)


def add_version(engine_dir: Path, out: Path, version: int, options: RepositoryOptions) -> AddedVersion:
    """Another engine as version `version` of the `tensorrt_llm` model of `options.name`; the other models stay.

    The version policy of the model stays, unless `options` names one. Nothing else of `options` is looked at.

    Raises:
        EngineError: no repository of ours, or no engine. OutputError: the version is there.
        PlanError: what one configuration, tokenizer or backend cannot hold.
    """
    engine = read_engine_facts(engine_dir)
    names = model_names(options)
    model = names["tensorrt_llm"]
    with locked(out) as manifest:
        chains = dict(manifest["source"].get("chains", {}))
        if options.name not in chains:
            known = ", ".join(name or "(no name)" for name in sorted(chains))
            raise EngineError(f"{out} has no models of the name {options.name!r}; there are {known}")
        chain, folder = chains[options.name], out / model / str(version)
        if folder.exists():
            raise OutputError(f"{folder} exists", hint="Choose another --model-version.")
        if engine.target != (target := str(chain["target"])):
            said = f"the models are of target {target}, the engine is of {engine.target}"
            raise PlanError([f"{said}: give it models of another --name"])
        changed = _changed(out, names, engine, options)
        config = parse_config(model, changed.get(model) or _text(out, model))
        problems = list(_problems(engine, config, version, out / tokenizer_folder(options)))
        if problems:
            raise PlanError(problems)
        with beside(out) as partial:
            made = partial / str(version)
            made.mkdir()
            copy_code("tensorrt_llm", made)
            source = engine_source(engine)
            (made / ENGINE_FILE).write_text(json.dumps({"gpt_model_path": source["engine"]}, indent=2) + "\n")
            moves = [(made, folder)]
            for name, text in changed.items():
                (partial / f"{name}.pbtxt").write_text(text, encoding="utf-8")
                moves.append((partial / f"{name}.pbtxt", out / name / "config.pbtxt"))
            versions = {**chain.get("versions", {}), str(version): source}
            chains[options.name] = {**chain, "versions": versions}
            move_in(partial, out, manifest, moves, chains)
        there, _unread = own_engines(out / model)
        return AddedVersion(engine, model, version, served_versions(config.version_policy, there))


def _text(out: Path, model: str) -> str:
    path = out / model / "config.pbtxt"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} cannot be read: {error}") from error


def _changed(out: Path, names: Mapping[str, str], engine: EngineFacts, options: RepositoryOptions) -> dict[str, str]:
    """Model -> its configuration with what the new version changes of it."""
    changed = {}
    if options.version_policy is not None:
        model = names["tensorrt_llm"]
        line = f"version_policy: {{ {policy_text(options.version_policy)} }}"
        text, times = _POLICY.subn(lambda _match: line, _text(out, model))
        if times != 1:
            raise EngineError(
                f"{out / model}/config.pbtxt has no version_policy line of trtbuild's", hint="Write it there by hand."
            )
        changed[model] = text
    # One preprocessing serves all versions; 0 leaves a length to each engine, which checks it as well.
    model = names["preprocessing"]
    text = before = _text(out, model)
    for key, length in (("max_input_len", engine.max_input_len), ("max_seq_len", engine.max_seq_len)):
        pattern = _LENGTH.format(key)
        found = re.search(pattern, text)
        if found and int(found[2]) not in (0, length):
            text = re.sub(pattern, r'\1"0"', text)
    if text != before:
        parse_config(model, text)
        changed[model] = text
    return changed


def _problems(engine: EngineFacts, config: Any, version: int, tokenizer: Path) -> Iterator[str]:
    """Why the engine cannot be a version of the model that `config` (`ModelConfig`) is of."""
    if version < 1:
        yield f"version {version} must be 1 or more"
    if engine.target != "cpu":
        yield (
            "TensorRT-LLM's backend has one gpt_model_path for all versions of a model: add it as models of another "
            "--name"
        )
    if (tokens := vocabulary(tokenizer)) > engine.vocab_size:
        yield f"the tokenizer has {tokens} tokens, above the engine's vocabulary of {engine.vocab_size}"
    values = {key: str(value.string_value) for key, value in config.parameters.items()}
    findings = engine_findings(config.name, values, config, engine.document)
    yield from refused(findings, ("kv-tokens", "batch-above-engine"))
