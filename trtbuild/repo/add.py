"""More models, or another version of one, into a repository that exists; no file that is there is written over.

New folders are made beside the repository and renamed into it, the ensembles last; the manifest is replaced at the
end. What fails in between leaves the repository as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError, OutputError, PlanError
from trtbuild.manifest import MANIFEST, read_manifest, sha256_file
from trtbuild.repo.info import EngineFacts, read_engine_facts
from trtbuild.repo.options import RepositoryOptions, model_names, policy_text
from trtbuild.repo.render import copy_code, parse_config
from trtbuild.repo.write import engine_source, plan_chain, tokenizer_folder, vocabulary, write_chain
from trtbuild.staging import write_error

ENGINE_FILE = "engine.json"
"""In a version folder of `tensorrt_llm` (cpu target): the engine of that version, instead of gpt_model_path."""
_POLICY = re.compile(r"^version_policy: \{.*\}$", re.MULTILINE)


def add_models(engine_dir: Path, out: Path, tokenizer: Path, options: RepositoryOptions) -> EngineFacts:
    """The models of another engine, under names that begin with `options.name`.

    Raises:
        EngineError: `out` is no repository of ours, or there is no engine or tokenizer. OutputError: a model of that
        name is there. PlanError: options that the engine cannot honour, or a repository of another target.
    """
    chain = plan_chain(engine_dir, out, tokenizer, options)
    with _locked(out) as manifest:
        if manifest["source"]["target"] != chain.engine.target:
            said = f"{out} is of the {manifest['source']['target']} target, the engine of {chain.engine.target}"
            raise PlanError([f"{said}: one server does not serve both"])
        taken = [name for name in chain.names.values() if (out / name).exists()]
        if taken:
            hint = "Give the new ones a --name of their own; for a new version of a model, --model-version."
            raise OutputError(f"{out} has {', '.join(taken)} already", hint=hint)
        with _beside(out) as partial:
            write_chain(partial, chain)
            order = [name for role, name in chain.names.items() if role != "ensemble"] + [chain.names["ensemble"]]
            moves = [(partial / name, out / name) for name in order]
            chains = {**manifest["source"].get("chains", {}), options.name: chain.source()}
            _move_in(out, manifest, moves, chains)
    return chain.engine


def add_version(engine_dir: Path, out: Path, version: int, options: RepositoryOptions) -> EngineFacts:
    """Another engine as version `version` of the `tensorrt_llm` model of `options.name`; the other models stay.

    The version policy of the model becomes that of `options`; by Triton's default the newest version is served.

    Raises:
        EngineError: no repository of ours, or no engine. OutputError: the version is there.
        PlanError: what one configuration, tokenizer or backend cannot hold.
    """
    engine = read_engine_facts(engine_dir)
    model = model_names(options)["tensorrt_llm"]
    with _locked(out) as manifest:
        chains = dict(manifest["source"].get("chains", {}))
        if options.name not in chains:
            known = ", ".join(name or "(no name)" for name in sorted(chains))
            raise EngineError(f"{out} has no models of the name {options.name!r}; there are {known}")
        folder, path = out / model / str(version), out / model / "config.pbtxt"
        if folder.exists():
            raise OutputError(f"{folder} exists", hint="Choose another --model-version.")
        old = read_engine_facts(Path(chains[options.name]["engine"]))
        _check_version(engine, old, version, vocabulary(out / tokenizer_folder(options)), path)
        config, times = _POLICY.subn(f"version_policy: {{ {policy_text(options.version_policy)} }}", path.read_text())
        if times != 1:
            raise EngineError(f"{path} has no version_policy line of trtbuild's", hint="Write it there by hand.")
        parse_config(model, config)
        with _beside(out) as partial:
            made = partial / str(version)
            made.mkdir()
            copy_code("tensorrt_llm", made)
            source = engine_source(engine)
            (made / ENGINE_FILE).write_text(json.dumps({"gpt_model_path": source["engine"]}, indent=2) + "\n")
            versions = {**chains[options.name].get("versions", {}), str(version): source}
            chains[options.name] = {**chains[options.name], "versions": versions}
            (partial / "config.pbtxt").write_text(config)
            _move_in(out, manifest, [(made, folder), (partial / "config.pbtxt", path)], chains)
    return engine


def _check_version(engine: EngineFacts, old: EngineFacts, version: int, tokens: int, config: Path) -> None:
    batch = re.search(r"^max_batch_size: (\d+)$", config.read_text(), re.MULTILINE)
    checks = (
        (version < 1, f"version {version} must be 1 or more"),
        (
            engine.target != "cpu" or old.target != "cpu",
            "TensorRT-LLM's backend has one gpt_model_path for all versions of a model: add it as models of another "
            "--name",
        ),
        (
            tokens > engine.vocab_size,
            f"the tokenizer has {tokens} tokens, above the engine's vocabulary of {engine.vocab_size}",
        ),
        (
            batch is not None and int(batch[1]) > engine.max_batch_size,
            f"the model's max_batch_size is above the engine's {engine.max_batch_size}",
        ),
        (
            engine.logits_dtype != old.logits_dtype,
            f"the engine's logits are {engine.logits_dtype}, version 1 has {old.logits_dtype}",
        ),
    )
    problems = [sentence for wrong, sentence in checks if wrong]
    if problems:
        raise PlanError(problems)


@contextmanager
def _locked(out: Path) -> Iterator[dict[str, Any]]:
    """The manifest of a repository that nobody else adds to meanwhile."""
    manifest = read_manifest(out)
    if manifest.get("kind") != "repository" or "target" not in manifest.get("source", {}):
        raise EngineError(
            f"{out} is not a repository of `trtbuild repo`", hint="Make it first, without --add, then add to it."
        )
    handle = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield read_manifest(out)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        os.close(handle)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder on the file system of `out`, which is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.add-", dir=out.resolve().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_in(out: Path, manifest: Mapping[str, Any], moves: list[tuple[Path, Path]], chains: Mapping[str, Any]) -> None:
    """Rename in their order, then replace the manifest; an error takes all of it back."""
    before = {target: target.read_bytes() for _source, target in moves if target.is_file()}
    moved: list[Path] = []
    with ExitStack() as undo:
        undo.callback(_take_back, moved, before)
        for source, target in moves:
            source.replace(target)
            moved.append(target)
        _write_manifest(out, manifest, moved, chains)
        undo.pop_all()


def _take_back(moved: list[Path], before: Mapping[Path, bytes]) -> None:
    for target in moved:
        if target in before:
            target.write_bytes(before[target])
        else:
            shutil.rmtree(target, ignore_errors=True)


def _write_manifest(out: Path, manifest: Mapping[str, Any], moved: list[Path], chains: Mapping[str, Any]) -> None:
    files = dict(manifest.get("files", {}))
    for target in moved:
        for path in sorted(target.rglob("*")) if target.is_dir() else [target]:
            if path.is_file():
                files[path.relative_to(out).as_posix()] = sha256_file(path)
    document = {
        **manifest,
        "source": {**manifest["source"], "chains": dict(chains)},
        "files": dict(sorted(files.items())),
    }
    fresh = out.resolve().parent / f".{out.name}.{MANIFEST}.tmp"
    fresh.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    fresh.replace(out / MANIFEST)
