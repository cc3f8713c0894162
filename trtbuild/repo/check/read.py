"""EDGE: a repository's files -> values; what cannot be read becomes a finding."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.errors import ServerError
from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found
from trtbuild.repo.parameters import PARAMETERS

_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")
_OURS = re.compile(r"^(from|import) trtbuild\b", re.MULTILINE)
_NEVER_EMPTY = {key for key, parameter in PARAMETERS.items() if parameter.never_empty}
"""Where a placeholder is left in these, the model is refused: parameter-value says so."""
_KEPT = {key for key, parameter in PARAMETERS.items() if parameter.required} | {"multimodal_model_path"}
"""Keys that must be there, be they empty."""


@dataclass
class Model:
    """One model: its parsed configuration (protobuf `ModelConfig`), and the files of its versions."""

    name: str
    folder: Path
    config: Any
    versions: list[str]
    files: list[str]
    """Relative to the model's folder."""
    is_ours: bool = False
    """Whether its model.py is this program's, and not upstream's or somebody else's."""

    def parameter(self, key: str) -> str:
        """The value of a parameter; a left-over placeholder counts as nothing, as it does for the backend."""
        value = str(self.config.parameters[key].string_value) if key in self.config.parameters else ""
        return "" if _PLACEHOLDER.fullmatch(value) else value


@dataclass
class Repository:
    folder: Path
    models: dict[str, Model] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_repository(folder: Path) -> Repository:
    """All models of a repository.

    Raises:
        ServerError: tritonclient, which has Triton's own form of a configuration, is not installed.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise ServerError(
            "checking a repository needs tritonclient", hint="pip install 'trtbuild[client]', then try again."
        ) from error
    repository = Repository(folder)
    paths = sorted(folder.glob("*/config.pbtxt"))
    if not paths:
        repository.findings.append(found("not-a-repository", str(folder), "MODEL/config.pbtxt", "none"))
    for path in paths:
        name = path.parent.name
        where = f"{name}/config.pbtxt"
        text = ""
        try:
            text = path.read_text(encoding="utf-8")
            config = text_format.Parse(text, model_config_pb2.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            left = sorted(set(_PLACEHOLDER.findall(text)))
            hint = f"Fill {', '.join(left)}." if left else "Write the repository again with `trtbuild repo`."
            repository.findings.append(found("model-config", where, "a model configuration", _line(error), hint))
            continue
        repository.models[name] = _model(path.parent, config)
        repository.findings += _left_over(where, config)
    return repository


def _model(folder: Path, config: Any) -> Model:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    versions = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    ours = any(_OURS.search(_code(folder / version / "model.py")) for version in versions)
    return Model(folder.name, folder, config, versions, files, ours)


def _code(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _left_over(where: str, config: Any) -> list[Finding]:
    """Placeholders that parse, because they stand in strings."""
    backend = str(config.backend)
    findings = []
    if _PLACEHOLDER.search(backend):
        findings.append(found("model-backend", where, "tensorrtllm or python", backend, "Fill triton_backend."))
    for key, value in sorted(config.parameters.items()):
        if _PLACEHOLDER.search(value.string_value) and key not in _NEVER_EMPTY:
            said = f"parameter {key} is {value.string_value}"
            expected = "a value, or an empty one" if key in _KEPT else "a value, or no such key"
            findings.append(found("model-placeholder", where, expected, said))
    return findings


def read_yaml(path: Path) -> dict[str, Any] | None:
    """A YAML mapping, read without running anything; None where there is none."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return loaded if isinstance(loaded, dict) else None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
