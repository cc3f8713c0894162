"""The command line itself: usage errors, completion, machine-readable output, and streams kept apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import trtbuild
from trtbuild import __version__
from trtbuild.errors import EXIT_CODES, Problems, TrtbuildError
from trtbuild.quantize.methods import METHODS


def test_version_and_help() -> None:
    assert trtbuild("--version").stdout.strip() == f"trtbuild {__version__}"
    done = trtbuild("--help")
    assert done.returncode == 0
    for command in ("plan", "checkpoint", "engine", "repo", "serve", "generate", "chat", "show"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["engine"], ["engine", "x", "-o", "y", "--tp", "0"], ["engine", "x", "-o", "y", "--quant", "int3"]],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = trtbuild(*arguments)
    assert done.returncode == 2
    assert not done.stdout
    assert "Usage" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"), [("trtbuild en", {"engine"}), ("trtbuild plan --quant ", {"auto", *METHODS})]
)
def test_shell_completion(words: str, expected: set[str]) -> None:
    env = {"_TRTBUILD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert set(trtbuild(env=env).stdout.split()) == expected


def test_exit_codes_are_published() -> None:
    document = json.loads(trtbuild("show", "exit-codes", "--json").stdout)
    assert str(EXIT_CODES[5]) in json.dumps(document)
    kinds = [TrtbuildError, *TrtbuildError.__subclasses__(), *Problems.__subclasses__()]
    assert {kind.exit_code for kind in kinds} <= set(EXIT_CODES)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert all(str(code) in readme for code in EXIT_CODES)
    assert len(readme.splitlines()) < 200


def test_json_is_alone_on_stdout(llama_folder: Path) -> None:
    done = trtbuild("plan", llama_folder, "--tp", "3", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["problems"]
    assert "tp 3" in done.stderr


def test_debug_shows_the_traceback(llama_folder: Path) -> None:
    assert "Traceback" not in trtbuild("plan", llama_folder, "--tp", "3").stderr
    assert "Traceback" in trtbuild("--debug", "plan", llama_folder, "--tp", "3", process=True).stderr
