"""What a recipe holds, and text <-> Recipe. PURE.

The sections are the options of the stages themselves, so a recipe says what the command line says, field by field.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from trtbuild.engine.options import DEFAULTS, BuildOptions, LaunchOptions
from trtbuild.errors import PlanError, RecipeError
from trtbuild.layout import DTYPES
from trtbuild.quantize.methods import METHODS
from trtbuild.recipe.binding import Binder, Words, plain
from trtbuild.recipe.document import Dumper, Node, read_document, with_value
from trtbuild.repo.options import FLAGS, RepositoryOptions
from trtbuild.repo.parameters import PARAMETERS
from trtbuild.serve.options import ServeOptions
from trtbuild.sizing.gpus import find_gpu
from trtbuild.spec import (
    AUTO,
    CALIBRATION,
    KV_CACHES,
    SEARCHES,
    SMS,
    TARGETS,
    CalibrationOptions,
    ConvertOptions,
    LayerMethod,
)
from trtbuild.verify.gates import Gates
from trtbuild.verify.task import VerifyOptions


@dataclass(frozen=True)
class Gpu:
    """The GPUs that a recipe is for: `type` by its usual name (trtbuild plan --gpu), how many of them, and a note."""

    type: str
    count: int = 1
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """Everything from a model to a served repository.

    `model`: a hub id or a folder; `revision`: a branch, tag or commit of the hub's. `verify`: the checkpoint is
    compared with its float32 model when it is given, {} for the default gates of the quantization. `launch`: how a
    TensorRT engine is built, which changes nothing of it. Relative paths are taken from the recipe's folder.
    """

    model: str
    revision: str | None = None
    description: str = ""
    target: str = ConvertOptions.target
    gpu: Gpu | None = None
    convert: ConvertOptions = field(default_factory=lambda: ConvertOptions(quant=AUTO))
    calibration: CalibrationOptions = CALIBRATION
    verify: VerifyOptions | None = None
    build: BuildOptions = field(default_factory=BuildOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    repo: RepositoryOptions = field(default_factory=RepositoryOptions)
    serve: ServeOptions = field(default_factory=ServeOptions)

    @property
    def options(self) -> ConvertOptions:
        """Those of the conversion, with the target and the SM of the GPUs."""
        return replace(self.convert, target=self.target, sm=self._sm())

    def _sm(self) -> int | None:
        own = find_gpu(self.gpu.type).layout_sm if self.gpu is not None else None
        return self.convert.sm if own is None else own


WORDS = Words(
    choices={
        (Recipe, "target"): tuple(TARGETS),
        (ConvertOptions, "dtype"): (AUTO, *DTYPES),
        (ConvertOptions, "quant"): (AUTO, *METHODS),
        (ConvertOptions, "kv_cache"): tuple(KV_CACHES),
        (ConvertOptions, "sm"): SMS,
        (ConvertOptions, "embedding_sharding_dim"): (0, 1),
        (LayerMethod, "method"): tuple(METHODS),
        (CalibrationOptions, "search"): SEARCHES,
        (RepositoryOptions, "batch_scheduler_policy"): PARAMETERS["batch_scheduler_policy"].choices,
    },
    keys={
        (RepositoryOptions, "parameters"): tuple(k for k, p in PARAMETERS.items() if not p.derived and k not in FLAGS),
        (VerifyOptions, "gates"): tuple(f.name for f in fields(Gates)),
    },
    elsewhere={(ConvertOptions, "target"): "the target stands at the top of a recipe, as target"},
)


def parse(text: str, sets: Sequence[str] = (), *, folder: Path | None = None) -> Recipe:
    """A recipe's text with overrides "section.key=value" -> Recipe; `folder`: where relative paths of texts begin.

    Raises:
        RecipeError: every problem of the text and of the overrides, each with its line or its override.
    """
    problems: list[str] = []
    root = read_document(text, problems, folder=folder)
    for override in sets:
        root = _overridden(root, override, problems)
    binder = Binder(WORDS, Recipe)
    recipe = binder.bind(root, Recipe) if not problems or root.value is not None else None
    problems += binder.problems
    if recipe is not None and not problems:
        problems += contradictions(recipe)
    if problems or recipe is None:
        raise RecipeError(sorted(problems, key=_line))
    assert isinstance(recipe, Recipe)
    return recipe


def write(recipe: Recipe) -> str:
    """The recipe as YAML with every value, defaults too; `parse` gives the same recipe back."""
    return yaml.dump(plain(recipe, WORDS), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def document(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, for JSON."""
    made: dict[str, Any] = plain(recipe, WORDS)
    return made


def contradictions(recipe: Recipe) -> list[str]:
    """Sections that do not go together; what the model has to say is left to the plan."""
    found = []
    convert, gpu = recipe.convert, recipe.gpu
    if not recipe.model.strip():
        found.append("model: a hub id or a folder is needed")
    if recipe.target == "cpu" and gpu is not None:
        found.append(f"gpu: target cpu runs on no GPU; leave gpu out, or take target {' or '.join(_gpu_targets())}")
    if gpu is not None and recipe.target == "tensorrt" and gpu.count != convert.world_size:
        found.append(
            f"gpu.count: {gpu.count} GPUs, but tp_size {convert.tp_size} x pp_size {convert.pp_size} are "
            f"{convert.world_size} ranks, and each rank has a GPU"
        )
    found += _gpu_problems(gpu, convert) if gpu is not None else []
    if recipe.target in DEFAULTS:
        try:
            recipe.build.require(recipe.target)
        except PlanError as error:
            found += [f"build: {problem}" for problem in error.problems]
    elif recipe.build != BuildOptions():
        found.append(f"build: target {recipe.target} has no engine to build; leave build out")
    if recipe.target not in DEFAULTS and recipe.verify is not None:
        found.append(f"verify: the checkpoint of target {recipe.target} cannot be run here; leave verify out")
    if recipe.target != "tensorrt" and recipe.launch != LaunchOptions():
        found.append(f"launch: it is for target tensorrt, not {recipe.target}; leave it out")
    return found


def _gpu_problems(gpu: Gpu, convert: ConvertOptions) -> list[str]:
    """A GPU that nobody knows, and an SM that is another GPU's."""
    try:
        known = find_gpu(gpu.type)
    except PlanError as error:
        return [f"gpu.type: {problem}" for problem in error.problems]
    if convert.sm not in (ConvertOptions.sm, known.sm):
        return [f"convert.sm: {convert.sm} is not the {gpu.type}'s, which is {known.sm}; leave it out, it follows gpu"]
    return []


def _line(problem: str) -> int:
    """Problems in the order of their lines, those of the whole last."""
    found = re.match(r"line (\d+):", problem)
    return int(found[1]) if found else 1 << 30


def _gpu_targets() -> list[str]:
    return [target for target in TARGETS if target != "cpu"]


def _overridden(root: Node, override: str, problems: list[str]) -> Node:
    """`root` with one override; its value is read as YAML, so that numbers, null and lists are what they look like."""
    path, equals, text = override.partition("=")
    where = f"--set {override}"
    keys = path.strip().split(".")
    if not equals or not all(keys):
        problems.append(f"{where}: write it as section.key=value")
        return root
    value = read_document(text, problems, where=where) if text else Node("", where)
    return with_value(root, keys, replace(value, raw=text))
