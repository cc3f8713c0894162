"""EDGE: a `tensorrt_llm` model with the engines that its served versions run, and the other files that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trtbuild.finding import Finding
from trtbuild.repo.check.engine import (
    encoder_findings,
    engine_findings,
    parameter_findings,
    target_findings,
)
from trtbuild.repo.check.read import Model
from trtbuild.repo.check.rules import found
from trtbuild.repo.info import misstated
from trtbuild.versions import ENGINE_FILE, own_engines, served_engines

_WHERE = "It must exist where the server runs, under this path"
_INFO_KEYS = ("encoded_vocab", "tokenizer_str", "stop_token_ids")
"""Of xgrammar_tokenizer_info_path, as TensorRT-LLM's examples/generate_xgrammar_tokenizer_info.py writes it."""


def model_findings(model: Model, engines: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """Faults of one model; what can be read of its engines' config.json goes into `engines`, too.

    Only versions that the server loads are looked at; nobody needs the others.
    """
    where = f"{model.name}/config.pbtxt"
    written = {key: str(value.string_value) for key, value in model.config.parameters.items()}
    yield from parameter_findings(where, written, str(model.config.backend))
    values = {key: text for key, text in written.items() if "${" not in text}
    own, unread = own_engines(model.folder)
    by_path: dict[str, str] = {}
    for version, path in served_engines(model.config, own).items():
        if version in unread:
            expected = f"{ENGINE_FILE} with a gpt_model_path"
            yield found("engine-missing", f"{model.name}/{version}/{ENGINE_FILE}", expected, unread[version])
            continue
        by_path.setdefault(path, f"{model.name}/{version}/{ENGINE_FILE}" if path == own[version] else where)
    # TensorRT-LLM's backend may have an encoder alone; Python models run decoders only.
    encoder = values.get("encoder_model_path", "") if model.config.backend != "python" else ""
    for path, said in by_path.items():
        if path:
            yield from _engine(said, path, values, model, engines)
        elif not encoder:
            yield found("engine-missing", where, "gpt_model_path", "none", "The server says: model paths are empty.")
    if encoder:
        yield from _encoder(where, encoder, values, model)
    if model.config.backend != "python":
        yield from _grammar(where, values)


def engine_config(folder: Path) -> dict[str, Any] | None:
    """config.json of an engine whose rank files are all there; None where it is not whole."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        mapping = config["pretrained_config"]["mapping"]
        ranks = int(mapping.get("tp_size") or 1) * int(mapping.get("pp_size") or 1) * int(mapping.get("cp_size") or 1)
        whole = all((folder / f"rank{rank}.engine").is_file() for rank in range(ranks))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return config if whole and isinstance(config, dict) else None


def _engine(
    where: str, path: str, values: Mapping[str, str], model: Model, engines: list[Mapping[str, Any]]
) -> Iterator[Finding]:
    engine = engine_config(Path(path))
    if engine is None:
        yield found("engine-missing", where, "a whole engine", path, f"{_WHERE}, with all of its ranks.")
        return
    if problems := misstated(engine):
        yield _misstated(where, path, problems)
        return
    engines.append(engine)
    yield from target_findings(where, str(model.config.backend), engine, is_ours=model.is_ours)
    yield from engine_findings(where, values, model.config, engine)


def _encoder(where: str, path: str, values: Mapping[str, str], model: Model) -> Iterator[Finding]:
    engine = engine_config(Path(path))
    if engine is None:
        hint = f"{_WHERE}, with all of its ranks."
        yield found("engine-missing", where, "a whole engine of the encoder (encoder_model_path)", path, hint)
        return
    if problems := misstated(engine):
        yield _misstated(where, path, problems)
        return
    yield from target_findings(where, str(model.config.backend), engine, is_ours=model.is_ours)
    yield from encoder_findings(where, values, model.config, engine)


def _misstated(where: str, path: str, problems: list[str]) -> Finding:
    expected = f"{path}/config.json as trtllm-build writes it"
    return found("engine-config", where, expected, "; ".join(problems), "Build the engine again.")


def _grammar(where: str, values: Mapping[str, str]) -> Iterator[Finding]:
    """The vocabulary that the C++ backend reads for guided decoding."""
    path = values.get("xgrammar_tokenizer_info_path", "")
    if not values.get("guided_decoding_backend") or not path:
        return
    expected = f"xgrammar_tokenizer_info_path: a JSON file with {', '.join(_INFO_KEYS)}"
    hint = f"{_WHERE}; TensorRT-LLM's examples/generate_xgrammar_tokenizer_info.py makes it from a tokenizer."
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield found("guided-vocabulary", where, expected, f"{path}: {type(error).__name__}", hint)
        return
    lacking = [key for key in _INFO_KEYS if not isinstance(document, dict) or key not in document]
    if lacking:
        yield found("guided-vocabulary", where, expected, f"{path} without {', '.join(lacking)}", hint)
