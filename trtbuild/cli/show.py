"""`trtbuild show`: what is supported, from the same tables that do the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import data, print_json

app = typer.Typer(help="Show what is supported.", no_args_is_help=True)


@app.command()
def families(as_json: JsonOpt = False) -> None:
    """Model families and their Hugging Face architectures."""
    from trtbuild.families import FAMILIES, families_of

    rows = [
        {
            "family": family.name,
            "architecture": hf,
            "tensorrt_llm": trt,
            "folder": family.folder,
            "tensor_parallel": family.tensor,
            "pipeline_parallel": family.pipeline,
            "rope_types": ["default", *family.rope_types],
            "note": family.note,
        }
        for family in FAMILIES
        for hf, trt in family.architectures.items()
    ]
    if as_json:
        print_json({"schema": 1, "families": rows})
        return
    # Two tables, so that both are readable in 80 columns; TensorRT-LLM's names are in the JSON.
    shown = [
        {
            "family": family.name,
            "architecture": name,
            "cut by": [kind for kind, can in (("tp", family.tensor), ("pp", family.pipeline)) if can],
            "rope types": ["default", *family.rope_types],
        }
        for family in FAMILIES
        for name in family.architectures
        if not family.folder or family is families_of(name)[0]  # one row for both halves
    ]
    _table(shown)
    # Several values of a family (halves, heads) share its name and its note.
    notes = dict.fromkeys((family.name, family.note) for family in FAMILIES if family.note)
    _table([{"family": name, "note": text} for name, text in notes])


@app.command()
def gpus(as_json: JsonOpt = False) -> None:
    """GPUs that `trtbuild plan --gpu` knows."""
    from trtbuild.sizing.gpus import GPUS

    rows = [
        {
            "gpu": gpu.name,
            "sm": gpu.sm,
            "memory_gib": gpu.memory_gib,
            "bandwidth_gb_s": gpu.bandwidth,
            "nvlink_gb_s": gpu.nvlink,
            "nvlink_pairs_only": gpu.bridged,
            "fp8": gpu.fp8,
            "int8_int4": gpu.int8,
            "aliases": list(gpu.aliases),
            "refused": gpu.refused,
        }
        for gpu in GPUS
    ]
    if as_json:
        print_json({"schema": 1, "gpus": rows})
        return
    _table([{key: row[key] for key in ("gpu", "sm", "memory_gib", "nvlink_gb_s", "fp8", "int8_int4")} for row in rows])


@app.command()
def methods(as_json: JsonOpt = False) -> None:
    """Quantization methods."""
    from trtbuild.quantize.methods import METHODS

    rows = [
        {
            "method": method.name,
            "quant_algo": method.quant_algo,
            "weight_bits": method.weight_bits,
            "calibration": method.needs_calibration,
            "description": method.description,
        }
        for method in METHODS.values()
    ]
    _print("methods", rows, as_json)


@app.command()
def rules(as_json: JsonOpt = False) -> None:
    """Rules of `trtbuild check`, with the severity that they usually have."""
    from trtbuild.lint.finding import RULES
    from trtbuild.repo.check.rules import RULES as OF_REPOSITORIES

    rows = [
        {"rule": name, "of": of, "severity": rule.severity, "what holds": rule.text}
        for of, table in (("checkpoint", RULES), ("repository", OF_REPOSITORIES))
        for name, rule in table.items()
    ]
    _print("rules", rows, as_json)


@app.command()
def recipes(as_json: JsonOpt = False) -> None:
    """Recipes that come with trtbuild, for `trtbuild run`."""
    from trtbuild.recipe.contents import document
    from trtbuild.recipe.shelf import shipped

    found = shipped()
    if as_json:
        rows = [{"name": one.name, "path": str(one.path), "recipe": document(one.recipe)} for one in found]
        print_json({"schema": 1, "recipes": rows})
        return
    _table(
        [
            {
                "name": one.name,
                "model": one.recipe.model,
                "target": one.recipe.target,
                "runs on": f"{one.recipe.gpu.count} x {one.recipe.gpu.type}" if one.recipe.gpu else "CPU",
                "quant": one.recipe.convert.quant,
                "tp x pp": f"{one.recipe.convert.tp_size} x {one.recipe.convert.pp_size}",
            }
            for one in found
        ]
    )


@app.command()
def schema() -> None:
    """JSON schema of recipes, for editors; it is published as recipes/recipe.schema.json."""
    from trtbuild.recipe.schema import recipe_schema

    print_json(recipe_schema())


@app.command(name="exit-codes")
def exit_codes(as_json: JsonOpt = False) -> None:
    """Exit codes of the program."""
    from trtbuild.errors import EXIT_CODES

    _print("exit_codes", [{"code": code, "meaning": meaning} for code, meaning in EXIT_CODES.items()], as_json)


def _print(name: str, rows: Sequence[Mapping[str, object]], as_json: bool) -> None:
    if as_json:
        print_json({"schema": 1, name: rows})
    else:
        _table(rows)


def _table(rows: Sequence[Mapping[str, object]]) -> None:
    from rich.table import Table

    table = Table()
    for column in rows[0]:
        # Folded, never cut: this is data, and a pipe is 80 columns wide.
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    data.print(table)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "-"
    return (
        {True: "yes", False: "no", None: "-"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )
