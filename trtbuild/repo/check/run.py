"""The order of work of `trtbuild check REPOSITORY`: files, parameters, engine, chain, ensembles, tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trtbuild.finding import Finding, Report, ordered
from trtbuild.repo.check.chain import chain_findings, prompt_table_findings, role_of
from trtbuild.repo.check.engines import model_findings
from trtbuild.repo.check.flow import flow_findings
from trtbuild.repo.check.llmapi import llmapi_findings
from trtbuild.repo.check.read import Model, read_repository, read_yaml
from trtbuild.repo.check.rules import found
from trtbuild.repo.check.texts import text_findings
from trtbuild.repo.check.tokens import tokenizer_findings
from trtbuild.versions import MODEL_FILE, runs_engine, served_versions

_BACKENDS = ("python", "tensorrtllm")


def check_repository(folder: Path, *, read_tokenizers: bool = True) -> Report:
    """All mismatches of a Triton repository, before a server starts.

    `read_tokenizers` False leaves out what needs transformers.

    Raises:
        ServerError: tritonclient is not installed.
    """
    repository = read_repository(folder)
    findings = list(repository.findings)
    engines: dict[str, list[Mapping[str, Any]]] = {}  # config.json of each, by chain
    for model in repository.models.values():
        findings += _files(model)
        written = {key: str(value.string_value) for key, value in model.config.parameters.items()}
        findings += text_findings(f"{model.name}/config.pbtxt", _role(model), written, is_ours=model.is_ours)
        if runs_engine(model.name, model.config):
            findings += model_findings(model, engines.setdefault(role_of(model.name)[0], []))
        elif "sampling_param_max_tokens" in _inputs(model) or any(f.endswith(f"/{MODEL_FILE}") for f in model.files):
            for version in _served(model):
                path = model.folder / str(version) / MODEL_FILE
                findings += llmapi_findings(f"{model.name}/{version}", model.config, read_yaml(path))
    configs = {name: model.config for name, model in repository.models.items()}
    findings += chain_findings(configs)
    findings += prompt_table_findings(configs, engines)
    findings += flow_findings(configs)
    if read_tokenizers:
        findings += _tokenizers(folder, repository.models, engines)
    return Report("repository", ordered(findings), num_tensors=sum(len(_inputs(m)) for m in repository.models.values()))


def _inputs(model: Model) -> set[str]:
    return {tensor.name for tensor in model.config.input}


def _role(model: Model) -> str:
    """Upstream's name of a model, by its own or, for those around the engine, by what every request must have."""
    inputs = _inputs(model)
    if {"QUERY", "REQUEST_OUTPUT_LEN"} <= inputs:
        return "preprocessing"
    return "postprocessing" if {"TOKENS_BATCH", "SEQUENCE_LENGTH"} <= inputs else role_of(model.name)[1]


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


def _tokenizers(
    folder: Path, models: dict[str, Model], engines: Mapping[str, list[Mapping[str, Any]]]
) -> Iterator[Finding]:
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
        sizes = [int(engine["pretrained_config"].get("vocab_size") or 0) for engine in engines.get(chain, [])]
        yield from tokenizer_findings(where, path, min(sizes, default=None))
