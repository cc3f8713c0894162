"""EDGE: the models of a repository that take text, each with the tokenizer of its chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtbuild.errors import EngineError, some
from trtbuild.repo.check.read import Model, read_repository


@dataclass(frozen=True)
class TextModel:
    """An ensemble, or a tensorrt_llm_bls. `tokenizer`: the folder that its prompts are tokenized with."""

    name: str
    tokenizer: Path
    ensemble: bool


def read_text_models(folder: Path) -> list[TextModel]:
    """Those of every chain, by name.

    Raises:
        EngineError: the folder has none. ServerError: tritonclient is not installed.
    """
    models = read_repository(folder).models
    found = []
    for model in models.values():
        before = models.get(_tokenizes_for(model))
        if before is not None and (text := before.parameter("tokenizer_dir")):
            path = folder / text
            if not path.is_dir():  # the C++ backend's is absolute: where the server runs, perhaps not here
                path = before.folder / "tokenizer"
            found.append(TextModel(model.name, path, bool(model.config.ensemble_scheduling.step)))
    if not found:
        hint = "Pass the folder that `trtbuild repo` wrote; models of the LLM class have no chat template here."
        raise EngineError(f"{folder} has no ensemble and no tensorrt_llm_bls", hint=hint)
    return found


def _tokenizes_for(model: Model) -> str:
    """The preprocessing of a model that takes text, or nothing."""
    steps = model.config.ensemble_scheduling.step
    if steps:
        return str(steps[0].model_name)
    if "tensorrt_llm_model_name" not in model.config.parameters:
        return ""
    return model.parameter("preprocessing_model_name") or "preprocessing"


def choose(models: Sequence[TextModel], name: str | None) -> list[TextModel]:
    """The one of that name; without a name the ensemble of every chain.

    Raises:
        EngineError: there is none of that name.
    """
    if name is None:
        return [model for model in models if model.ensemble] or list(models)
    found = [model for model in models if model.name == name]
    if not found:
        raise EngineError(f"the repository has no model {name} that takes text; it has {some(m.name for m in models)}")
    return found
