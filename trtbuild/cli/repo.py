"""`trtbuild repo`: an engine becomes a Triton model repository, or a part of one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from trtbuild.cli import repo_options as o
from trtbuild.cli.output import note

NAME = "repo"
PANEL = "Build"


def command(
    engine: o.Engine,
    output: o.Output,
    tokenizer: o.Tokenizer = None,
    target: o.Target = None,
    name: o.Name = "",
    add: o.Add = False,
    model_version: o.ModelVersion = None,
    version_policy: o.VersionPolicy = None,
    bls: o.Bls = True,
    accumulate_tokens: o.AccumulateTokens = False,
    instances: o.Instances = None,
    bls_instances: o.BlsInstances = None,
    preprocessing_instances: o.PreprocessingInstances = None,
    decoupled: o.Decoupled = True,
    max_batch_size: o.MaxBatchSize = None,
    max_queue_delay_microseconds: o.MaxQueueDelayMicroseconds = 0,
    max_queue_size: o.MaxQueueSize = 0,
    batch_scheduler_policy: o.BatchSchedulerPolicy = None,
    encoder_features_type: o.EncoderFeaturesType = "FP16",
    prompt_table_type: o.PromptTableType = "FP16",
    exclude_input_in_output: o.ExcludeInputInOutput = False,
    max_tokens_in_kv: o.MaxTokensInKv = None,
    kv_mem_fraction: o.KvMemFraction = None,
    add_special_tokens: o.AddSpecialTokens = True,
    skip_special_tokens: o.SkipSpecialTokens = True,
    parameter: o.Parameter = None,
    tp: o.TpSize = 1,
    pp: o.PpSize = 1,
    llm: o.Argument = None,
    force: o.Force = False,
) -> None:
    """Write the Triton repository of an ENGINE: preprocessing, tensorrt_llm, postprocessing, ensemble, BLS."""
    given = dict(locals())
    _check(given)
    if target is not None:
        written = _llmapi(engine, output, given)
        what = f"more models in {output}:" if add else f"repository {output} of"
        note(f"{what} the model {written} for {engine} (tensorrt_llm.LLM on {tp * pp} GPU(s))")
    elif model_version is not None:
        _version(engine, output, given)
    else:
        facts = _engine(engine, output, given)
        what = "more models in" if add else "repository"
        note(f"{what} {output} for the {facts.target} engine {engine} ({facts.world_size} rank(s))")
    note(f"next: trtbuild serve {output}")


_FIELDS = {
    "triton_max_batch_size": "max_batch_size",
    "max_tokens_in_paged_kv_cache": "max_tokens_in_kv",
    "kv_cache_free_gpu_mem_fraction": "kv_mem_fraction",
    "tp_size": "tp",
    "pp_size": "pp",
}
"""Fields of options whose flags have another name."""


def _check(given: dict[str, Any]) -> None:
    """Raises: BadParameter for flags that do not go together."""
    if given["add"] and given["force"]:
        raise typer.BadParameter("--add never writes over anything; leave --force out", param_hint="--add")
    if given["model_version"] is not None and not given["add"]:
        raise typer.BadParameter("goes with --add", param_hint="--model-version")
    if given["model_version"] is None and given["target"] is None and given["tokenizer"] is None:
        raise typer.BadParameter("is missing: the Hugging Face model folder", param_hint="--tokenizer")
    if given["target"] is None and (given["tp"] != 1 or given["pp"] != 1 or given["llm"]):
        raise typer.BadParameter("go with --target llmapi; an engine has its own", param_hint="--tp, --pp, --llm")


def _refuse_others(given: dict[str, Any], taken: set[str], flags: tuple[str, ...], what: str) -> None:
    """Raises: BadParameter for options of a repository beside those in `taken`, and for other `flags`."""
    from trtbuild.repo.options import RepositoryOptions

    usual = RepositoryOptions()
    foreign = [
        "--" + _FIELDS.get(f.name, f.name).replace("_", "-")
        for f in fields(RepositoryOptions)
        if f.name not in {*taken, "parameters"} and given[_FIELDS.get(f.name, f.name)] != getattr(usual, f.name)
    ]
    foreign += ["--" + name.replace("_", "-") for name in flags if given[name]]
    if foreign:
        raise typer.BadParameter(f"does not go with {', '.join(foreign)}", param_hint=what)


def _engine(engine: Path, output: Path, given: dict[str, Any]) -> Any:
    from trtbuild.repo.add import add_models
    from trtbuild.repo.options import RepositoryOptions
    from trtbuild.repo.write import write_repository

    options = _options(RepositoryOptions, {**given, "parameters": _pairs(given["parameter"] or [], "--parameter")})
    if given["add"]:
        return add_models(engine, output, given["tokenizer"], options)
    return write_repository(engine, output, given["tokenizer"], options, force=given["force"])


def _version(engine: Path, output: Path, given: dict[str, Any]) -> None:
    from trtbuild.repo.add import add_version
    from trtbuild.repo.options import RepositoryOptions

    # The other models stay as they are, and the configuration is that of all versions.
    _refuse_others(given, {"name", "version_policy"}, ("tokenizer", "parameter"), "--model-version")
    options = RepositoryOptions(name=given["name"], version_policy=given["version_policy"])
    added = add_version(engine, output, given["model_version"], options)
    served = ", ".join(map(str, added.served)) or "none"
    note(f"version {added.version} of {added.model} in {output} for the {added.engine.target} engine {engine}")
    note(f"served versions: {served}")
    if added.version not in added.served:
        note(
            f"warning: version {added.version} is not served: the model's version policy stays without --version-policy"
        )


def _llmapi(source: Path, output: Path, given: dict[str, Any]) -> str:
    from trtbuild.errors import PlanError
    from trtbuild.repo.add import add_llmapi
    from trtbuild.repo.llm_arguments import read_arguments, unknown_arguments
    from trtbuild.repo.llmapi import LlmapiOptions, write_llmapi_repository

    taken = {field.name for field in fields(LlmapiOptions)}
    _refuse_others(given, taken, ("model_version", "tokenizer", "parameter"), "--target llmapi")
    arguments, problems = read_arguments(_pairs(given["llm"] or [], "--llm"))
    if problems:
        raise PlanError(problems)
    options = _options(LlmapiOptions, {**given, "arguments": arguments})
    for sentence in unknown_arguments(arguments):
        note(f"warning: {sentence}")
    if given["add"]:
        return add_llmapi(source, output, options)
    return write_llmapi_repository(source, output, options, force=given["force"])


def _options(kind: Any, given: dict[str, Any]) -> Any:
    return kind(**{field.name: given[_FIELDS.get(field.name, field.name)] for field in fields(kind)})


def _pairs(texts: list[str], flag: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint=flag)
        pairs[key] = value
    return pairs
