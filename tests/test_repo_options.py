"""Options of `trtbuild repo`: what is refused with which exit code, for engines and for the LLM class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.repositories import hf_folder, run
from tests.test_repo_render import engine, tokenizer
from trtbuild.finding import ERROR
from trtbuild.repo.check.run import check_repository

PAGED = {"use_paged_context_fmha": True}
PARAMETERS: list[tuple[str, str, dict[str, Any], str]] = [
    ("cpu", "exclude_input_in_output=true", {}, "exclude_input_in_output is an option of its own"),
    ("cpu", "max_tokens_in_paged_kv_cache=16", {}, "is an option of its own (--max-tokens-in-kv)"),
    ("tensorrt", "kv_cache_free_gpu_mem_fraction=0.5", {}, "is an option of its own (--kv-mem-fraction)"),
    ("cpu", "max_beam_width=8", {}, "beam-width: expected max_beam_width within the engine's 1, found 8"),
    ("tensorrt", "max_beam_width=8", {}, "beam-width"),
    ("tensorrt", "enable_chunked_context=true", {}, "chunked-context"),
    ("tensorrt", "cross_kv_cache_fraction=0.5", {}, "cross-attention"),
    ("tensorrt", "gpu_device_ids=0,1,2", {"tp": 2}, "device-ids"),
    ("tensorrt", "participant_ids=1", {"tp": 2}, "participants"),
    ("tensorrt", "participant_ids=1;2", {}, "instance-group"),
    ("tensorrt", "gpu_device_ids=0,1;2,3", {"tp": 2}, ""),
    ("tensorrt", "gpu_weights_percent=0.5", {}, "weight-streaming"),
    ("tensorrt", "decoding_mode=medusa", {}, "decoding-mode"),
    ("tensorrt", "out_of_vocabulary_ids=wrap", {}, "of the cpu target only"),
    ("tensorrt", "enable_chunked_context=true", {"plugin_config": PAGED}, ""),
    ("tensorrt", "gpu_device_ids=0,1", {"tp": 2}, ""),
    ("cpu", "out_of_vocabulary_ids=wrap", {}, ""),
]


@pytest.mark.parametrize(("target", "parameter", "build", "words"), PARAMETERS)
def test_nothing_is_written_that_check_refuses(
    tmp_path: Path, target: str, parameter: str, build: dict[str, Any], words: str
) -> None:
    built = engine(tmp_path / "e", target=target, **build)
    done = run(built, "-o", tmp_path / "r", "--tokenizer", tokenizer(tmp_path / "tok"), "--parameter", parameter)
    assert done.exit_code == (3 if words else 0), done.output
    assert words in done.output
    assert (tmp_path / "r").exists() == (not words)
    if not words:
        errors = [f for f in check_repository(tmp_path / "r", read_tokenizers=False).findings if f.severity == ERROR]
        assert not errors


LLM: list[tuple[tuple[object, ...], int, str]] = [
    (("--llm", "peft_cache_config={host_cache_size: 1000}", "--llm", "sampler_type=TorchSampler"), 0, ""),
    (("--llm", "cuda_graph_config=null", "--llm", "batch_wait_timeout_ms=2"), 0, ""),
    (("--llm", "peft_cache=1"), 0, "warning: peft_cache is no argument"),
    (("--llm", "peft_cache=1"), 0, "did you mean peft_cache_config?"),
    (("--llm", "stream_interval=two"), 3, "'two' is not of the kind int"),
    (("--llm", "enable_lora=1"), 3, "1 is not of the kind bool"),
    (("--llm", "kv_cache_config={a"), 3, "is not YAML"),
    (("--tp", 2, "--llm", "tensor_parallel_size=4"), 3, "tensor_parallel_size has an option of its own: --tp"),
    (("--llm", "kv_cache_config={max_tokens: 4}"), 3, "kv_cache_config.max_tokens has an option of its own"),
    (("--llm", "backend=tensorrt"), 3, "serves pytorch only"),
    (("--llm", "model=/m"), 3, "cannot be set"),
    (("--llm", "stream_interval"), 2, "is not KEY=VALUE"),
    (("--tp", 4), 3, "6 attention heads are not divisible by tp 4"),
    (("--version-policy", "newest"), 3, "version policy 'newest' is not"),
    (("--accumulate-tokens", "--no-decoupled"), 3, "want decoupled mode"),
    (("--kv-mem-fraction", 1.5), 3, "must be above 0 and below 1"),
    (("--tokenizer", "tok"), 2, "--tokenizer"),
    (("--max-batch-size", 4), 2, "--max-batch-size"),
    (("--add", "--model-version", 2), 2, "--model-version"),
    (("--parameter", "decoding_mode=top_k"), 2, "--parameter"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), LLM)
def test_repositories_of_the_llm_class(tmp_path: Path, arguments: tuple[object, ...], code: int, words: str) -> None:
    done = run(hf_folder(tmp_path / "hf"), "-o", tmp_path / "l", "--target", "llmapi", *arguments)
    assert done.exit_code == code, done.output
    assert words in done.output
    assert (tmp_path / "l").exists() == (code == 0)
