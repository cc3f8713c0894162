"""The order of work of `trtbuild check REPOSITORY`: files, parameters, engine, chain, ensembles, tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trtbuild.finding import Finding, Report, ordered
from trtbuild.repo.check.chain import chain_findings, role_of
from trtbuild.repo.check.engine import engine_findings, parameter_findings
from trtbuild.repo.check.flow import flow_findings
from trtbuild.repo.check.llmapi import llmapi_findings
from trtbuild.repo.check.read import Model, read_repository, read_yaml
from trtbuild.repo.check.rules import found
from trtbuild.repo.check.tokens import engine_config, tokenizer_findings
from trtbuild.versions import ENGINE_FILE, MODEL_FILE, own_engines, runs_engine, served_engines, served_versions

_BACKENDS = ("python", "tensorrtllm")


def check_repository(folder: Path, *, read_tokenizers: bool = True) -> Report:
    """All mismatches of a Triton repository, before a server starts.

    `read_tokenizers` False leaves out what needs transformers.

    Raises:
        ServerError: tritonclient is not installed.
    """
    repository = read_repository(folder)
    findings = list(repository.findings)
    vocabularies: dict[str, list[int]] = {}  # by chain
    for model in repository.models.values():
        findings += _files(model)
        if runs_engine(model.name, model.config):
            findings += _engines(model, vocabularies.setdefault(role_of(model.name)[0], []))
        elif "sampling_param_max_tokens" in _inputs(model) or any(f.endswith(f"/{MODEL_FILE}") for f in model.files):
            for version in _served(model):
                path = model.folder / str(version) / MODEL_FILE
                findings += llmapi_findings(f"{model.name}/{version}", model.config, read_yaml(path))
    configs = {name: model.config for name, model in repository.models.items()}
    findings += chain_findings(configs)
    findings += flow_findings(configs)
    if read_tokenizers:
        findings += _tokenizers(folder, repository.models, vocabularies)
    return Report("repository", ordered(findings), num_tensors=sum(len(_inputs(m)) for m in repository.models.values()))


def _inputs(model: Model) -> set[str]:
    return {tensor.name for tensor in model.config.input}


def _served(model: Model) -> tuple[int, ...]:
    return served_versions(model.config.version_policy, map(int, model.versions))


def _files(model: Model) -> Iterator[Finding]:
    where = f"{model.name}/config.pbtxt"
    if model.config.name not in ("", model.name):
        yield found("model-name", where, model.name, str(model.config.name))
    if not model.versions:
        yield found("model-version", model.name, "a folder 1", "none", "It must exist even where it is empty.")
    backend = str(model.config.backend)
    if model.config.platform != "ensemble" and backend not in _BACKENDS and "${" not in backend:
        yield found("model-backend", where, " or ".join(_BACKENDS), backend or "none")
    for version in model.versions if backend == "python" else ():
        if f"{version}/model.py" not in model.files:
            yield found("model-code", f"{model.name}/{version}", "model.py", "none")
    asked = {str(version) for version in model.config.version_policy.specific.versions}
    if asked - set(model.versions):
        lacking = ", ".join(sorted(asked - set(model.versions)))
        yield found("version-policy", where, f"folders {lacking}", f"only {', '.join(model.versions) or 'none'}")


def _engines(model: Model, vocabularies: list[int]) -> Iterator[Finding]:
    """The engines of the versions that the server loads; nobody needs the others."""
    where = f"{model.name}/config.pbtxt"
    values = {key: str(value.string_value) for key, value in model.config.parameters.items()}
    yield from parameter_findings(where, values, str(model.config.backend))
    own, unread = own_engines(model.folder)
    by_path: dict[str, str] = {}
    for version, path in served_engines(model.config, own).items():
        if version in unread:
            expected = f"{ENGINE_FILE} with a gpt_model_path"
            yield found("engine-missing", f"{model.name}/{version}/{ENGINE_FILE}", expected, unread[version])
            continue
        by_path.setdefault(path, f"{model.name}/{version}/{ENGINE_FILE}" if path == own[version] else where)
    for path, said in by_path.items():
        if path:
            yield from _engine(said, path, values, model, vocabularies)
        else:
            yield found("engine-missing", where, "gpt_model_path", "none", "The server says: model paths are empty.")


def _engine(where: str, path: str, values: dict[str, str], model: Model, vocabularies: list[int]) -> Iterator[Finding]:
    engine = engine_config(Path(path))
    if engine is None:
        hint = "It must exist where the server runs, under this path, with all of its ranks."
        yield found("engine-missing", where, "a whole engine", path, hint)
        return
    vocabularies.append(int(engine["pretrained_config"].get("vocab_size") or 0))
    yield from engine_findings(where, {k: v for k, v in values.items() if "${" not in v}, model.config, engine)


def _tokenizers(folder: Path, models: dict[str, Model], vocabularies: dict[str, list[int]]) -> Iterator[Finding]:
    """Each folder that a pre- or postprocessing names, once; a relative one is meant from the repository."""
    named: dict[Path, tuple[str, str]] = {}
    for model in models.values():
        if runs_engine(model.name, model.config) or "tokenizer_dir" not in model.config.parameters:
            continue
        text = model.parameter("tokenizer_dir")
        where = f"{model.name}: tokenizer_dir {text}".rstrip()
        if not text:
            yield found("tokenizer-missing", where, "a tokenizer folder", "none")
        else:
            named.setdefault(folder / text, (where, role_of(model.name)[0]))
    for path, (where, chain) in named.items():
        yield from tokenizer_findings(where, path, min(vocabularies.get(chain, []), default=None))
