"""Stages 1 and 2 up to the plan: a model's name -> its folder -> what every rank will hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.errors import CheckpointError, EngineError
from trtbuild.spec import ConvertOptions

if TYPE_CHECKING:
    from trtbuild.families.rules import Family
    from trtbuild.hub.snapshot import ModelHeaders, ModelSource
    from trtbuild.layout import TensorInfo
    from trtbuild.plan import ModelPlan


def resolve(model: str, revision: str | None = None, *, allow_pickle: bool = False) -> ModelSource:
    """The folder of a local path or hub id, downloaded where it is missing (stage 1)."""
    from trtbuild.hub.snapshot import resolve_model

    return resolve_model(model, revision, allow_pickle=allow_pickle)


def make_plan(
    model: str, options: ConvertOptions, revision: str | None = None, *, allow_pickle: bool = False
) -> ModelPlan:
    """Plan a conversion without writing or downloading weights; the plan carries its problems.

    Raises:
        HubError, CheckpointError, UnsupportedModel: where there is nothing to plan with.
    """
    from trtbuild.hub.snapshot import resolve_headers

    return plan_source(resolve_headers(model, revision), options, allow_pickle=allow_pickle)


def plan_source(
    source: ModelSource | ModelHeaders, options: ConvertOptions, *, allow_pickle: bool = False
) -> ModelPlan:
    """The plan of a model whose folder, or whose headers, are there already."""
    from trtbuild.hub.snapshot import ModelHeaders

    if isinstance(source, ModelHeaders):
        return _plan_model(source.config, source.quant_config, source.index, options)[0]
    return _plan_index(source.path, options) or plan_folder(source.path, options, allow_pickle=allow_pickle)[0]


def require_engine(families: Iterable[Family], target: str = "cpu") -> None:
    """Refuse targets, and families, for which there is no engine.

    Raises:
        EngineError: says what trtbuild does for such a model.
    """
    if target == "llmapi":
        raise EngineError(
            "there is no engine for target 'llmapi': trtllm-serve and vllm serve read the checkpoint itself",
            hint="Make it with `trtbuild checkpoint --target llmapi`.",
        )
    if target != "cpu":
        raise EngineError(
            f"trtbuild engine cannot build for target {target!r} yet",
            hint="Make the checkpoint with `trtbuild checkpoint --target tensorrt`; run trtllm-build on the GPU host.",
        )
    for family in families:
        if not family.engine:
            raise EngineError(
                f"there is no cpu engine for {family.name}: the cpu runtime and serving are for decoder-only models",
                hint="What works: `trtbuild plan`, `trtbuild checkpoint`, and running the checkpoint to compare its "
                "numbers (`python -m trtbuild.runtime.encoder`). Build its engine with trtllm-build on a GPU host.",
            )


def _plan_index(folder: Path, options: ConvertOptions) -> ModelPlan | None:
    """The plan of a folder with config.json and an index but no weights: shapes are what config.json says.

    Raises:
        CheckpointError: the model is quantized, whose shapes config.json does not say.
    """
    from trtbuild.checkpoint.config import load_config, read_specs
    from trtbuild.checkpoint.source import INDEX, bare_index
    from trtbuild.importers import without_auto
    from trtbuild.plan import plan_model
    from trtbuild.sizing.described import described_index

    names = bare_index(folder)
    if names is None:
        return None
    config = load_config(folder)
    if config.get("quantization_config") or (folder / "hf_quant_config.json").is_file():
        hint = "Fetch its weights, or give the hub id: then the headers of its files are read."
        raise CheckpointError(f"{folder} has no weights, and the shapes of a quantized model are only there", hint=hint)
    specs = read_specs(config)
    warning = f"{folder} has no weights: shapes and dtypes are those that config.json says, names those of {INDEX}"
    return plan_model(specs, without_auto(options), described_index(specs, names), warnings=[warning])


def plan_folder(
    folder: Path, options: ConvertOptions, *, allow_pickle: bool = False
) -> tuple[ModelPlan, dict[str, TensorInfo]]:
    from trtbuild.checkpoint.config import load_config, load_quant_config
    from trtbuild.checkpoint.source import read_index

    index = read_index(folder, allow_pickle=allow_pickle)
    return _plan_model(load_config(folder), load_quant_config(folder), index, options)


def _plan_model(
    config: dict[str, Any], quant_config: dict[str, Any] | None, index: dict[str, TensorInfo], options: ConvertOptions
) -> tuple[ModelPlan, dict[str, TensorInfo]]:
    """The plan, and the index in which quantized linears are whole again; `quant_config`: hf_quant_config.json."""
    from trtbuild.checkpoint.config import read_specs
    from trtbuild.checkpoint.quantized_source import KEY, with_scales
    from trtbuild.importers import recognise, settle
    from trtbuild.importers.parts import with_parts
    from trtbuild.llmapi.plan import plan_hf_model
    from trtbuild.plan import plan_model

    settled = settle(options, recognise(config, quant_config))
    options, imported, problems = settled.options, settled.imported, list(settled.problems)
    if imported is None:
        index = with_scales(index, config.get(KEY))
    else:
        index, found = with_parts(index, imported)
        problems += found
        config = {key: value for key, value in config.items() if key != KEY}
    if options.target == "llmapi":
        specs = read_specs(config)
        return plan_hf_model(config, specs, options, index, imported, problems, settled.warnings), index
    return plan_model(read_specs(config), options, index, imported, problems, settled.warnings), index
