"""What a run of a recipe consists of, and what is known of it before. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.errors import PlanError, RecipeError

if TYPE_CHECKING:
    from trtbuild.plan import ModelPlan
    from trtbuild.recipe.contents import Recipe
    from trtbuild.sizing.estimate import Estimate

STAGES: dict[str, tuple[str, ...]] = {
    "cpu": ("plan", "checkpoint", "verify", "engine", "repo"),
    "tensorrt": ("plan", "checkpoint", "verify", "engine", "repo"),
    "llmapi": ("plan", "checkpoint"),
}
"""The stages of each target, in order; verify only where the recipe has it."""


@dataclass(frozen=True)
class Step:
    """What a stage will do. `because`: why it does not stand; empty where it does, and for the plan."""

    stage: str
    folder: Path | None
    stands: bool
    because: str
    files: Dict[str, int | None] = field(default_factory=dict)
    """Name in `folder` -> bytes, None where only the stage itself will know."""


@dataclass(frozen=True)
class Foreseen:
    """What the engine build will say: what TensorRT-LLM refuses or changes, and why this host cannot build."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunPlan:
    """What a run would do. `sizing`: on the recipe's GPUs, None where it names none, or nothing can be said."""

    plan: ModelPlan
    sizing: Estimate | None
    engine: Foreseen
    steps: tuple[Step, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Of the model's plan, of the GPUs, and of the engine."""
        verdict = self.sizing.verdict.problems if self.sizing else ()
        return tuple(dict.fromkeys((*self.plan.problems, *verdict, *self.engine.problems)))

    @property
    def warnings(self) -> tuple[str, ...]:
        verdict = self.sizing.verdict.warnings if self.sizing else ()
        here = (f"this host cannot build the engine: {obstacle}" for obstacle in self.engine.obstacles)
        return tuple(dict.fromkeys((*self.plan.warnings, *verdict, *self.engine.warnings, *here)))

    def require(self) -> None:
        """Raise PlanError with every problem, if there is one."""
        if self.problems:
            raise PlanError(self.problems)


@dataclass(frozen=True)
class Outcome:
    """What a stage did. `made`: false where it stood already."""

    stage: str
    folder: Path | None
    made: bool
    because: str
    seconds: float


def stages_of(recipe: Recipe, until: str | None = None) -> tuple[str, ...]:
    """The stages that a recipe goes through, up to and with `until`.

    Raises:
        RecipeError: there is no such stage for its target.
    """
    stages = tuple(stage for stage in STAGES[recipe.target] if stage != "verify" or recipe.verify is not None)
    if until is None:
        return stages
    if until not in stages:
        raise RecipeError([f"--until {until}: this recipe has {', '.join(stages)}"])
    return stages[: stages.index(until) + 1]
