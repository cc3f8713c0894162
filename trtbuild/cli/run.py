"""`trtbuild run`: a recipe becomes a checkpoint, an engine and a repository."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.options import AllowPickleOpt, JsonOpt, NoCacheOpt, WorkersOpt
from trtbuild.cli.output import line, note, print_json, progress_bar, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtbuild.recipe.contents import Recipe
    from trtbuild.run_plan import Outcome, RunPlan, Step
    from trtbuild.sizing.estimate import Estimate

NAME = "run"
PANEL = "Build"
SCHEMA = 1
UNTIL = ("plan", "checkpoint", "verify", "engine", "repo")


def _names() -> list[str]:
    from trtbuild.recipe.shelf import shipped_paths

    return list(shipped_paths())


def _until(value: str | None) -> str | None:
    if value is not None and value not in UNTIL:
        raise typer.BadParameter(f"unknown stage {value!r}; stages are {', '.join(UNTIL)}")
    return value


SetOpt = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as build.max_batch_size=32; repeatable."),
]
UntilOpt = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="STAGE",
        callback=_until,
        autocompletion=lambda: list(UNTIL),
        help=f"Stop after this stage: {', '.join(UNTIL)}.",
        show_default="the last",
    ),
]


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or the name of a recipe that comes along (`trtbuild show recipes`).",
            autocompletion=_names,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="WORKDIR", help="Where the folders of its stages are made.")
    ],
    sets: SetOpt = [],  # noqa: B006
    until: UntilOpt = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the commands of the stages and their files; write nothing.")
    ] = False,
    workers: WorkersOpt = 0,
    allow_pickle: AllowPickleOpt = False,
    no_cache: NoCacheOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Run a recipe: plan, checkpoint, verify where it says so, engine, repository; what stands already is skipped."""
    from trtbuild import pipeline
    from trtbuild.cache.stage import open_cache
    from trtbuild.recipe.shelf import load

    loaded = load(recipe, sets)
    if dry_run:
        planned = pipeline.plan_run(loaded, output, until, allow_pickle=allow_pickle)
        shown = _commands(recipe, sets, loaded, output, planned.steps)
        if as_json:
            print_json(document(loaded, planned, shown))
        else:
            _show(loaded, planned, shown)
        planned.require()
        return
    cache = open_cache(keep=not no_cache)
    outcomes = pipeline.run_recipe(
        loaded,
        output,
        until=until,
        watch=progress_bar,
        warn=lambda text: note(f"warning: {text}"),
        workers=workers,
        allow_pickle=allow_pickle,
        cache=cache,
    )
    for text in cache.notes:
        note(text)
    if as_json:
        print_json({"schema": SCHEMA, "work": str(output), "stages": [_outcome(outcome) for outcome in outcomes]})
    _say(loaded, output, outcomes)


def _say(recipe: Recipe, work: Path, outcomes: Sequence[Outcome]) -> None:
    from trtbuild.cli.stage_commands import serve_command

    for outcome in outcomes[1:]:
        how = f"made in {outcome.seconds:.1f} s ({outcome.because})" if outcome.made else "stands already"
        note(f"{outcome.stage}: {how}: {outcome.folder}")
    if outcomes[-1].stage == "repo":
        note(f"next: {shlex.join(serve_command(recipe, work))}")


def document(recipe: Recipe, planned: RunPlan, commands: dict[str, list[str]]) -> dict[str, Any]:
    """A dry run as JSON; sizes in bytes. `schema` changes when a key is removed or changes its meaning."""
    from trtbuild.recipe.contents import document as recipe_document

    return {
        "schema": SCHEMA,
        "recipe": recipe_document(recipe),
        "problems": list(planned.problems),
        "warnings": list(planned.warnings),
        "gpu": _gpu(planned.sizing) if planned.sizing else None,
        "stages": [
            {
                "stage": step.stage,
                "folder": str(step.folder) if step.folder else None,
                "stands": step.stands,
                "because": step.because,
                "command": commands[step.stage],
                "files": dict(step.files),
            }
            for step in planned.steps
        ],
    }


def _gpu(sizing: Estimate) -> dict[str, Any]:
    """The rank that decides, and what fits beside it."""
    verdict, gpu = sizing.verdict, sizing.target.gpu
    rank = next(rank for rank in verdict.ranks if rank.rank == verdict.deciding)
    return {
        "type": gpu.name,
        "memory_bytes": gpu.memory_bytes,
        "weights_bytes": rank.weights,
        "other_bytes": rank.fixed - rank.weights,
        "kv_tokens": verdict.kv_tokens[rank.rank],
        "sequences": verdict.sequences,
        "context": sizing.target.context,
    }


def _commands(name: str, sets: list[str], recipe: Recipe, work: Path, steps: Sequence[Step]) -> dict[str, list[str]]:
    from trtbuild.cli.stage_commands import stage_command

    again = ["trtbuild", "run", name, "-o", str(work), *(part for text in sets for part in ("--set", text))]
    return {step.stage: stage_command(step.stage, recipe, work) or [*again, "--until", step.stage] for step in steps}


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "stage": outcome.stage,
        "folder": str(outcome.folder) if outcome.folder else None,
        "made": outcome.made,
        "because": outcome.because,
        "seconds": round(outcome.seconds, 3),
    }


def _show(recipe: Recipe, planned: RunPlan, commands: dict[str, list[str]]) -> None:
    if planned.sizing and recipe.gpu:
        found = _gpu(planned.sizing)
        weights, other = size(found["weights_bytes"]), size(found["other_bytes"])
        line(
            f"{recipe.gpu.count} x {found['type']}: a rank has {weights} of weights and {other} beside them; "
            f"{found['sequences']} sequences of {found['context']} tokens fit ({found['kv_tokens']} tokens)"
        )
    for step in planned.steps:
        line(f"{step.stage}: " + ("stands already" if step.stands else f"to do: {step.because}".removesuffix(": ")))
        line(f"  $ {shlex.join(commands[step.stage])}")
        for name, nbytes in step.files.items():
            line(f"  {step.folder}/{name}" + (f"  {size(nbytes)}" if nbytes is not None else ""))
    for warning in planned.warnings:
        note(f"warning: {warning}")
