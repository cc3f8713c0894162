"""A recipe and the plan of its model -> what each rank takes on the GPUs that the recipe names. PURE."""

from __future__ import annotations

from trtbuild.engine.options import DEFAULTS
from trtbuild.plan import ModelPlan
from trtbuild.recipe.contents import Recipe
from trtbuild.sizing.estimate import Estimate, default_context, estimate, refusals
from trtbuild.sizing.gpus import find_gpu
from trtbuild.sizing.target import Limits, Target


def on_gpu(recipe: Recipe, plan: ModelPlan) -> Estimate | None:
    """Memory and legality on the recipe's GPUs; it has problems where not one sequence of full length fits.

    None where there is nothing to say: no GPU, no engine for one, or a plan with problems.
    """
    if recipe.gpu is None or recipe.target != "tensorrt" or plan.problems or refusals(plan):
        return None
    build, fraction = recipe.build, recipe.repo.kv_cache_free_gpu_mem_fraction
    usual = DEFAULTS["tensorrt"]
    limits = Limits(
        max_batch_size=build.max_batch_size or usual["max_batch_size"],
        max_num_tokens=build.max_num_tokens or usual["max_num_tokens"],
        max_seq_len=build.max_seq_len or default_context(plan.parts[0].spec),
        kv_fraction=Limits.kv_fraction if fraction is None else fraction,
        tokens_per_block=build.plugin_config.tokens_per_block,
    )
    return estimate(plan, Target(find_gpu(recipe.gpu.type), limits.max_seq_len, concurrency=1), limits)
