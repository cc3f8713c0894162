"""Stages 1 and 2 up to the plan: a model's name -> its folder -> what every rank will hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.errors import EngineError
from trtbuild.spec import ConvertOptions

if TYPE_CHECKING:
    from trtbuild.families.rules import Family
    from trtbuild.hub.snapshot import ModelSource
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
    from trtbuild.hub.snapshot import ModelHeaders, resolve_headers

    source = resolve_headers(model, revision)
    if isinstance(source, ModelHeaders):
        return _plan_model(source.config, source.quant_config, source.index, options)[0]
    return plan_folder(source.path, options, allow_pickle=allow_pickle)[0]


def require_engine(families: Iterable[Family]) -> None:
    """Refuse families for which there is no cpu engine.

    Raises:
        EngineError: says what trtbuild does for such a model.
    """
    for family in families:
        if not family.engine:
            raise EngineError(
                f"there is no cpu engine for {family.name}: the cpu runtime and serving are for decoder-only models",
                hint="What works: `trtbuild plan`, `trtbuild checkpoint`, and running the checkpoint to compare its "
                "numbers (`python -m trtbuild.runtime.encoder`); `trtbuild engine --target tensorrt` on a GPU host.",
            )


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
    from trtbuild.plan import plan_model

    settled = settle(options, recognise(config, quant_config))
    options, imported, problems = settled.options, settled.imported, list(settled.problems)
    if imported is None:
        index = with_scales(index, config.get(KEY))
    else:
        index, found = with_parts(index, imported)
        problems += found
        config = {key: value for key, value in config.items() if key != KEY}
    return plan_model(read_specs(config), options, index, imported, problems, settled.warnings), index
