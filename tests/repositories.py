"""Repositories as values: digests of files, parsed configurations; and `trtbuild repo` in this process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests.test_repo_render import parsed, tokenizer
from trtbuild.cli.app import app
from trtbuild.errors import TrtbuildError


def hf_folder(folder: Path) -> Path:
    """A Hugging Face folder without weights, of six attention heads."""
    tokenizer(folder)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "num_attention_heads": 6}')
    return folder


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, the manifest left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "trtbuild.json"
    }


def manifest(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "trtbuild.json").read_text())
    return loaded


def config(folder: Path, model: str) -> Any:
    return parsed({model: (folder / model / "config.pbtxt").read_text()})[model]


@dataclass
class Done:
    exit_code: int
    output: str


def run(*arguments: object) -> Done:
    """`trtbuild repo` in this process; the exit codes of errors are those that `main` ends with."""
    result = CliRunner().invoke(app, ["repo", *map(str, arguments)], env={"COLUMNS": "200"})
    if isinstance(result.exception, TrtbuildError):
        return Done(result.exception.exit_code, result.output + str(result.exception))
    return Done(result.exit_code, result.output)
