"""The parameters of the tensorrt_llm model as data: what the C++ reader would silently mistake is refused."""

from __future__ import annotations

import pytest

from trtbuild.repo.parameters import PARAMETERS, parameter_problems

GOOD = {
    "max_attention_window_size": "4096,8192",
    "gpu_device_ids": "0,1;2,3",
    "eagle_choices": "{0},{0,0},{1}",
    "medusa_choices": "{0, 0}".replace(" ", ""),
    "kv_cache_free_gpu_mem_fraction": ".85",
    "lora_cache_gpu_memory_fraction": "1",
    "multi_block_mode": "FALSE",
    "lora_prefetch_dir": "/a b/${c}",
    "decoding_mode": "top_k_top_p",
}
BAD = {
    "max_attention_window_size": "4096,,1",
    "gpu_device_ids": "0,1;",
    "eagle_choices": "{0},(1)",
    "kv_cache_free_gpu_mem_fraction": "0",
    "lora_cache_gpu_memory_fraction": "1.1",
    "multi_block_mode": "on",
    "num_nodes": "0",
    "cancellation_check_period_ms": "100ms",
    "iter_stats_max_iterations": "-1",
    "decoding_mode": "greedy",
    "enable_trt_overlap": "true",
}


@pytest.mark.parametrize(("key", "text"), GOOD.items())
def test_values_that_the_backend_reads(key: str, text: str) -> None:
    assert not parameter_problems({key: text})


@pytest.mark.parametrize(("key", "text"), BAD.items())
def test_values_that_it_mistakes(key: str, text: str) -> None:
    (problem,) = parameter_problems({key: text})
    assert key in problem
    assert text in problem


def test_keys() -> None:
    problems = parameter_problems({"max_beam_widht": "1", "worker_path": "/w", "gpt_model_path": "/e"})
    assert "did you mean max_beam_width" in problems[0]
    assert "executor_worker_path" in problems[1]
    assert "cannot be set" in problems[2]
    (problem,) = parameter_problems({"decoding_mode": "lookahead"})
    assert problem.count("lookahead_") == 6
    assert not parameter_problems(
        {f"lookahead_{n}": "3" for n in ("window_size", "ngram_size", "verification_set_size")}
    )


def test_the_defaults_are_values() -> None:
    """A default that the table would refuse is a mistake of the table."""
    words = ("unset", "all visible", "top_k_top_p, or beam_search", "mc_sim_7b_63", "ignored")
    for parameter in PARAMETERS.values():
        assert parameter.default in words or not parameter.problem(parameter.default), parameter.key
