"""`trtbuild repo`: an engine becomes a Triton model repository, or a part of one."""

from __future__ import annotations

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
    name: o.Name = "",
    add: o.Add = False,
    model_version: o.ModelVersion = None,
    version_policy: o.VersionPolicy = "latest",
    bls: o.Bls = True,
    accumulate_tokens: o.AccumulateTokens = False,
    bls_instances: o.BlsInstances = None,
    preprocessing_instances: o.PreprocessingInstances = None,
    decoupled: o.Decoupled = True,
    max_batch_size: o.MaxBatchSize = None,
    max_queue_delay_microseconds: o.MaxQueueDelayMicroseconds = 0,
    max_queue_size: o.MaxQueueSize = 0,
    batch_scheduler_policy: o.BatchSchedulerPolicy = None,
    exclude_input_in_output: o.ExcludeInputInOutput = False,
    max_tokens_in_kv: o.MaxTokensInKv = None,
    kv_mem_fraction: o.KvMemFraction = None,
    add_special_tokens: o.AddSpecialTokens = True,
    skip_special_tokens: o.SkipSpecialTokens = True,
    parameter: o.Parameter = None,
    force: o.Force = False,
) -> None:
    """Write the Triton repository of an ENGINE: preprocessing, tensorrt_llm, postprocessing, ensemble, BLS."""
    from trtbuild.repo.options import RepositoryOptions

    options = RepositoryOptions(
        name=name,
        triton_max_batch_size=max_batch_size,
        preprocessing_instances=preprocessing_instances,
        bls=bls,
        bls_instances=bls_instances,
        accumulate_tokens=accumulate_tokens,
        version_policy=version_policy,
        add_special_tokens=add_special_tokens,
        skip_special_tokens=skip_special_tokens,
        exclude_input_in_output=exclude_input_in_output,
        decoupled=decoupled,
        max_queue_delay_microseconds=max_queue_delay_microseconds,
        max_queue_size=max_queue_size,
        max_tokens_in_paged_kv_cache=max_tokens_in_kv,
        kv_cache_free_gpu_mem_fraction=kv_mem_fraction,
        batch_scheduler_policy=batch_scheduler_policy,
        parameters=_pairs(parameter or []),
    )
    if add and force:
        raise typer.BadParameter("--add never writes over anything; leave --force out", param_hint="--add")
    if model_version is not None and not add:
        raise typer.BadParameter("goes with --add", param_hint="--model-version")
    facts = _write(engine, output, tokenizer, options, model_version if add else None, add=add, force=force)
    what = f"version {model_version} in" if model_version else "more models in" if add else "repository"
    note(f"{what} {output} for the {facts.target} engine {engine} ({facts.world_size} rank(s))")
    note(f"next: trtbuild serve {output}")


def _write(
    engine: Path,
    output: Path,
    tokenizer: Path | None,
    options: Any,
    version: int | None,
    *,
    add: bool,
    force: bool,
) -> Any:
    from trtbuild.repo.add import add_models, add_version
    from trtbuild.repo.write import write_repository

    if version is not None:
        if tokenizer is not None:
            raise typer.BadParameter("a new version keeps the tokenizer that is there", param_hint="--tokenizer")
        return add_version(engine, output, version, options)
    if tokenizer is None:
        raise typer.BadParameter("is missing: the Hugging Face model folder", param_hint="--tokenizer")
    if add:
        return add_models(engine, output, tokenizer, options)
    return write_repository(engine, output, tokenizer, options, force=force)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--parameter")
        pairs[key] = value
    return pairs
