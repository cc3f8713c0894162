"""The recipes that come along: each planned on its real model's config and tensors, fitting the GPU that it names.

tests/data/recipes/sources.json says where each config.json was found and with which published size its tensors agree.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.recipe_models import (
    BYTES,
    DATA,
    engine_bytes,
    folder_of,
    header,
    kv_token_bytes,
    model_folder,
    sources,
    tensors_of,
)
from tests.tiny import ROOT, trtbuild
from trtbuild.errors import RecipeError
from trtbuild.plan import ModelPlan
from trtbuild.planning import make_plan
from trtbuild.recipe.contents import Recipe
from trtbuild.recipe.on_gpu import on_gpu
from trtbuild.recipe.schema import recipe_schema
from trtbuild.recipe.shelf import load, shipped_paths
from trtbuild.sizing.gpus import find_gpu

PATHS = sorted((ROOT / "recipes").rglob("*.yaml"))
NAMES = [path.name.removesuffix(".yaml") for path in PATHS]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_no_recipe_is_overlooked() -> None:
    assert len(PATHS) == 22
    assert set(shipped_paths()) == set(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    assert {load(name).target for name in NAMES} == {"cpu", "tensorrt", "llmapi"}
    assert {folder_of(load(name).model) for name in NAMES} == {path.parent.name for path in DATA.glob("*/config.json")}


@pytest.mark.parametrize("name", sorted(sources()))
def test_a_models_tensors_have_the_size_that_was_published(name: str) -> None:
    about, tensors = sources()[name], tensors_of(name)
    assert sum(BYTES[dtype] * prod(shape) for dtype, shape in tensors.values()) == about["total_size"]
    assert about["config"]
    assert about["size_source"]
    assert about["tensors"] in ("index", "meta")
    assert about["tensors"] == "meta" or "model.safetensors.index.json" in about["size_source"]


def test_how_many_indices_are_real() -> None:
    """What `tests/recipe_models.py` says of them."""
    kinds = [about["tensors"] for about in sources().values()]
    assert (kinds.count("index"), kinds.count("meta")) == (3, 14)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_planned_without_problems_and_fits_its_gpu(name: str, models: Path) -> None:
    recipe = load(name)
    plan = make_plan(str(model_folder(recipe.model, models)), recipe.options)
    assert not plan.problems
    # Which servers load a Hugging Face checkpoint is said as a warning.
    assert not plan.warnings or (recipe.target == "llmapi" and len(plan.warnings) == 1)
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith(header(name, recipe, plan)), "python -m tests.recipe_models"
    if recipe.target == "tensorrt":
        assert recipe.gpu is not None
        assert find_gpu(recipe.gpu.type).layout_sm == recipe.options.sm
        check_on_gpu(recipe, plan)


def check_on_gpu(recipe: Recipe, plan: ModelPlan) -> None:
    """It is legal there, a sequence of full length fits, and so it does by arithmetic of our own (engine-build 9.2)."""
    sizing = on_gpu(recipe, plan)
    assert sizing is not None
    assert not sizing.verdict.problems
    assert not sizing.verdict.warnings
    assert sizing.verdict.paged_context
    assert sizing.verdict.sequences >= 2
    config = json.loads((DATA / folder_of(recipe.model) / "config.json").read_text())
    positions = config.get("max_position_embeddings", 2048)  # Falcon-180B's has none; it was trained with 2048
    assert sizing.target.context <= positions
    kv = kv_token_bytes(config, recipe.convert.tp_size, 1 if recipe.options.kv_cache_algo else 2)
    assert {rank.kv_token_bytes for rank in sizing.verdict.ranks} == {kv}
    weights = max(rank.weights for rank in sizing.verdict.ranks)
    assert engine_bytes(plan) <= weights <= engine_bytes(plan) * 1.02  # sizing counts the table of rotary angles too
    free = find_gpu(str(recipe.gpu and recipe.gpu.type)).memory_bytes - engine_bytes(plan)
    assert sizing.verdict.sequences * sizing.target.context * kv < 0.9 * free


def test_a_recipe_that_its_gpu_cannot_hold_or_run_is_refused(models: Path) -> None:
    name = "llama-3.1-70b-instruct.fp8.4xh100"
    folder = model_folder(load(name).model, models)
    gpus = ("--set", "gpu={type: A10, count: 2}", "--set", "convert.tp_size=2")
    done = trtbuild("run", name, "-o", models / "w", "--until", "checkpoint", "--set", f"model={folder}", *gpus)
    assert done.returncode == 3
    assert "needs fp8 tensor cores" in done.stderr
    assert "before any KV cache; A10 has 21.99 GiB" in done.stderr
    assert not (models / "w").exists()
    with pytest.raises(RecipeError) as caught:
        load(name, ["gpu.type=H1000", "convert.sm=86"])
    assert "unknown GPU 'H1000'; did you mean" in caught.value.message
    with pytest.raises(RecipeError) as caught:
        load(name, ["convert.sm=86"])
    assert caught.value.problems == ("convert.sm: 86 is not the H100's, which is 90; leave it out, it follows gpu",)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_recipe_is_valid_by_the_published_schema(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert text.splitlines()[1] == f"# trtbuild run {path.name.removesuffix('.yaml')} -o work"
    Draft202012Validator(recipe_schema()).validate(yaml.safe_load(text))


def test_they_are_shown() -> None:
    rows = json.loads(trtbuild("show", "recipes", "--json").stdout)["recipes"]
    assert [row["name"] for row in rows] == sorted(NAMES)
    table = trtbuild("show", "recipes").stdout
    assert all(row["recipe"]["model"] in table for row in rows)
    missing = trtbuild("run", "llama-3.1-8b-instruct.fp8.1xh10", "-o", "nowhere")
    assert missing.returncode == 3
    assert "did you mean llama-3.1-8b-instruct.fp8.1xh100?" in missing.stderr
