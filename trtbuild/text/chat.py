"""Chat templates of Hugging Face tokenizer folders, rendered in Jinja's sandbox without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.text.tokenizer import read_json


class ChatTemplate:
    """`render(messages)` is the prompt that the model was trained on, up to where its answer starts."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise EngineError(f"the chat template cannot be read: {error}") from error
        self._tokens = dict(tokens)

    def render(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """The prompt for `messages` (dicts with role and content); without `answer` the conversation only.

        Raises:
            EngineError: the template refuses these messages.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=list(messages), add_generation_prompt=answer, **self._tokens)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # A template is a program: what goes wrong in it is its own fault, or that of the messages.
            raise EngineError(f"the chat template refuses these messages: {error}") from error


def load_chat_template(folder: Path) -> ChatTemplate:
    """The template of a tokenizer folder (chat_template.jinja, or in tokenizer_config.json).

    Raises:
        EngineError: the folder has none, or one that cannot be read.
    """
    source = _source(folder)
    if not isinstance(source, str):
        raise EngineError(
            f"{folder} has no chat template",
            hint="Use an instruction-tuned model, or `trtbuild generate` for plain text.",
        )
    config = read_json(folder / "tokenizer_config.json")
    special = {**read_json(folder / "special_tokens_map.json"), **config}
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return ChatTemplate(source, {name: _token_text(special.get(name)) for name in names})


def has_chat_template(folder: Path) -> bool:
    """Whether a tokenizer folder says anything of a template, be it one that cannot be read.

    Raises:
        EngineError: its files cannot be read at all.
    """
    return _source(folder) is not None


def _source(folder: Path) -> Any:
    """The template's text; None where there is none, and another type where it is not written as one."""
    own = folder / "chat_template.jinja"
    try:
        written = own.read_text(encoding="utf-8") if own.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"the chat template {own} cannot be read: {error}") from error
    source = read_json(folder / "tokenizer_config.json").get("chat_template") if written is None else written
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    return source


def _token_text(value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
