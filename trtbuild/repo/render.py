"""Templates + values -> config.pbtxt texts, each parsed back before it counts. Every variable must have a value."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError


def templates_dir() -> Path:
    """The folder `model_repo_templates`: a link in a checkout, files of the package when installed.

    Raises:
        EngineError: the installation lost it.
    """
    folder = Path(__file__).resolve().parents[1] / "model_repo_templates"
    if not (folder / "ensemble").is_dir():
        raise EngineError("model_repo_templates is missing from this installation", hint="Install trtbuild again.")
    return folder


def pbtxt_string(value: object) -> str:
    """A quoted protobuf text string; whatever is in `value` stays inside of the quotes.

    >>> pbtxt_string('a"b')
    '"a\\\\"b"'
    """
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    text = "".join(
        escapes.get(char) or (char if char >= " " and char != "\x7f" else f"\\{ord(char):03o}") for char in str(value)
    )
    return f'"{text}"'


def render_configs(values: Mapping[str, Any]) -> dict[str, str]:
    """The config.pbtxt of every model in `values["names"]`, by role.

    Raises:
        EngineError: a template misses a value, the text is not a model configuration, or tritonclient is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["pbtxt"] = pbtxt_string
    environment.filters["tf"] = lambda value: "true" if value else "false"
    texts = {}
    for role, name in values["names"].items():
        try:
            text = environment.get_template(f"{role}/config.pbtxt.j2").render(**values)
        except TemplateError as error:
            raise EngineError(f"template {role}/config.pbtxt.j2: {error}") from error
        parse_config(name, text)
        texts[role] = text
    return texts


def copy_code(role: str, version: Path) -> None:
    """model.py of a model into its version folder; an empty file where it has none, so that the folder is kept."""
    code = templates_dir() / role / "1" / "model.py"
    if code.is_file():
        shutil.copyfile(code, version / "model.py")
    else:
        (version / ".keep").touch()


def parse_config(model: str, text: str) -> Any:
    """The configuration (`ModelConfig`) of `model`, as Triton's own protobuf reads it; the server would do the same.

    Raises:
        EngineError: the text is none, is of another model, or tritonclient is not installed.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise EngineError(
            "writing a repository needs tritonclient, to read the configurations back as Triton does",
            hint="pip install 'trtbuild[client]'",
        ) from error
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise EngineError(f"{model}/config.pbtxt is not a model configuration: {error}") from error
    if config.name != model:
        raise EngineError(f"{model}/config.pbtxt names the model {config.name!r}")
    return config
