"""Every parameter of the `tensorrt_llm` model as data: kind, allowed values, what the backend does without it. Pure.

Source: upstream's template of TensorRT-LLM 1.2 and the C++ reader behind it (model_state.cc, model_instance_state.cc).
That reader takes numbers with trailing junk ("2560x" is 2560) and replaces what it cannot read by a default, with a
warning in its log at most; here such a text is an error before the server starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TRUE, FALSE = ("true", "True", "TRUE", "1"), ("false", "False", "FALSE", "0")
"""All that the C++ reader understands as a switch."""

LOGITS_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}
"""dtype of an engine's logits -> Triton's data type; the backend returns no others."""

_INT = re.compile(r"\d+")
_LIST = re.compile(r"\d+(,\d+)*")
_LISTS = re.compile(r"\d+(,\d+)*(;\d+(,\d+)*)*")
_CHOICES = re.compile(r"\{\d+(,\d+)*\}(,\{\d+(,\d+)*\})*")


@dataclass(frozen=True)
class Parameter:
    """One key. `default` is what the backend takes where the key is missing; `least` and `most` bound numbers.

    `derived`: it follows from the engine or the tokenizer and is not the user's. `required`: the backend reads the key
    without a guard, so it must be there. `never_empty`: nor has it a default for an empty one. `open_range`: the bounds
    themselves are not allowed. `cpu_only`: ours, which TensorRT-LLM's backend does not know.
    """

    key: str
    kind: str
    meaning: str
    default: str = "unset"
    choices: tuple[str, ...] = ()
    least: float = 0
    most: float = float("inf")
    open_range: bool = False
    derived: bool = False
    required: bool = False
    never_empty: bool = False
    cpu_only: bool = False

    @property
    def is_default_written(self) -> bool:
        """Whether `default` is a value, and not words about what happens."""
        return self.default != "unset" and self.kind != "choices" and not self.problem(self.default)

    def problem(self, text: str) -> str:
        """Why `text` is no value of this parameter; empty where it is one."""
        if self.choices:
            return "" if text in self.choices else f"{self.key} {text!r} is none of {', '.join(self.choices)}"
        if self.kind in ("text", "path"):
            return ""
        wanted = {
            "switch": "true or false",
            "int": "a whole number",
            "float": "a number",
            "ints": "numbers with commas",
            "groups": "numbers with commas, a semicolon between instances",
            "choices": "paths such as {0},{0,0},{1}",
        }[self.kind]
        if not self._reads(text):
            return f"{self.key} {text!r} is not {wanted}"
        if self.kind in ("int", "float") and not self._within(float(text)):
            return f"{self.key} {text} must be {self._bounds()}"
        return ""

    def _reads(self, text: str) -> bool:
        if self.kind == "float":
            return bool(re.fullmatch(r"\d+(\.\d*)?|\.\d+", text))
        patterns = {"int": _INT, "ints": _LIST, "groups": _LISTS, "choices": _CHOICES}
        return text in TRUE + FALSE if self.kind == "switch" else bool(patterns[self.kind].fullmatch(text))

    def _within(self, value: float) -> bool:
        return self.least < value < self.most if self.open_range else self.least <= value <= self.most

    def _bounds(self) -> str:
        if self.open_range:
            return f"above {self.least:g} and below {self.most:g}"
        return f"within {self.least:g}..{self.most:g}" if self.most != float("inf") else f"at least {self.least:g}"


def _rows(*rows: Parameter) -> dict[str, Parameter]:
    return {row.key: row for row in rows}


_MODES = ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle")
_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
_P = Parameter

PARAMETERS = _rows(
    _P("max_beam_width", "int", "beams at most; the engine's or fewer", "1", least=1),
    _P("FORCE_CPU_ONLY_INPUT_TENSORS", "text", "keeps input tensors on the GPU with `no`", "no", choices=("no", "yes")),
    _P("gpt_model_type", "text", "batching", required=True, never_empty=True, derived=True,
       choices=("inflight_fused_batching", "inflight_batching", "V1", "v1")),
    _P("gpt_model_path", "path", "engine directory", derived=True),
    _P("encoder_model_path", "path", "engine directory of the encoder"),
    _P("max_tokens_in_paged_kv_cache", "int", "tokens that the KV cache holds", least=1),
    _P("max_attention_window_size", "ints", "sliding window of each layer, repeated in turn"),
    _P("sink_token_length", "int", "attention sinks (StreamingLLM)"),
    _P("batch_scheduler_policy", "text", "how sequences are admitted", "guaranteed_no_evict",
       choices=("max_utilization", "guaranteed_no_evict")),
    _P("kv_cache_free_gpu_mem_fraction", "float", "share of the GPU memory that is free then", "0.9", most=1,
       open_range=True),
    _P("cross_kv_cache_fraction", "float", "share of the pool for cross attention; only encoder-decoder", most=1),
    _P("kv_cache_host_memory_bytes", "int", "host memory for KV blocks", "0"),
    _P("kv_cache_onboard_blocks", "switch", "internal; false fails with paged context FMHA", "true"),
    _P("enable_kv_cache_reuse", "switch", "blocks of equal prefixes are shared", "true"),
    _P("exclude_input_in_output", "switch", "answers without the prompt, unless the request says", "false"),
    _P("cancellation_check_period_ms", "int", "how often cancelled requests are looked for", "100", least=1),
    _P("stats_check_period_ms", "int", "how often metrics are refreshed", "100", least=1),
    _P("recv_poll_period_ms", "int", "orchestrator mode: pause of the receiving thread", "0"),
    _P("iter_stats_max_iterations", "int", "iterations whose statistics are kept", "1000"),
    _P("request_stats_max_iterations", "int", "the same for requests", "0"),
    _P("normalize_log_probs", "switch", "log probs of the normalized distribution", "true"),
    _P("enable_chunked_context", "switch", "prompts in pieces between decode steps", "false"),
    _P("gpu_device_ids", "groups", "GPUs of each instance", "all visible"),
    _P("participant_ids", "groups", "MPI ranks of each instance"),
    _P("num_nodes", "int", "hosts of one instance", "1", least=1),
    _P("lora_cache_optimal_adapter_size", "int", "LoRA cache pages", "8", least=1),
    _P("lora_cache_max_adapter_size", "int", "largest LoRA rank in the cache", "64", least=1),
    _P("lora_cache_gpu_memory_fraction", "float", "of what the KV cache leaves", "0.05", most=1),
    _P("lora_cache_host_memory_bytes", "int", "LoRA cache on the host", "1073741824"),
    _P("lora_prefetch_dir", "path", "adapters that are loaded at the start"),
    _P("decoding_mode", "text", "how tokens are chosen", "top_k_top_p, or beam_search", choices=_MODES),
    _P("executor_worker_path", "path", "worker program of orchestrator mode", _WORKER),
    _P("lookahead_window_size", "int", "all three of lookahead, or none", least=1),
    _P("lookahead_ngram_size", "int", "all three of lookahead, or none", least=1),
    _P("lookahead_verification_set_size", "int", "all three of lookahead, or none", least=1),
    _P("medusa_choices", "choices", "the tree of Medusa", "mc_sim_7b_63"),
    _P("eagle_choices", "choices", "the tree of EAGLE", "mc_sim_7b_63"),
    _P("gpu_weights_percent", "float", "weights that stay on the GPU; below 1 wants weight_streaming", "1.0", most=1),
    _P("enable_context_fmha_fp32_acc", "switch", "float32 sums in context attention", "false"),
    _P("multi_block_mode", "switch", "long sequences over several blocks of the GPU", "true"),
    _P("cuda_graph_mode", "switch", "decode steps as CUDA graphs", "false"),
    _P("cuda_graph_cache_size", "int", "graphs that are kept", "0"),
    _P("speculative_decoding_fast_logits", "switch", "only orchestrator mode without spawning", "false"),
    _P("tokenizer_dir", "path", "guided decoding of the Python variant", required=True, derived=True),
    _P("guided_decoding_backend", "text", "grammar of answers; empty is off", required=True, choices=("", "xgrammar")),
    _P("xgrammar_tokenizer_info_path", "path", "vocabulary for xgrammar", required=True),
    _P("enable_trt_overlap", "switch", "ignored since 0.16", "ignored", choices=FALSE),
    _P("out_of_vocabulary_ids", "text", "`wrap` takes them modulo the vocabulary (load generators)",
       "refuse", choices=("refuse", "wrap"), cpu_only=True),
)  # fmt: skip
"""In the order of upstream's template; the last one is ours."""

RETIRED = {"worker_path": "executor_worker_path"}
"""Former name -> the one that replaced it."""


def parameter_problems(given: Mapping[str, str]) -> list[str]:
    """One sentence for every key that is unknown, retired or not the user's, and every value that is none."""
    problems = []
    for key, text in given.items():
        if key in RETIRED:
            problems.append(f"parameter {key} is retired; its name is {RETIRED[key]} now")
        elif key not in PARAMETERS:
            problems.append(f"unknown parameter {key}{_nearest(key)}")
        elif PARAMETERS[key].derived:
            problems.append(f"parameter {key} follows from the engine and the tokenizer and cannot be set")
        elif problem := PARAMETERS[key].problem(text):
            problems.append(f"parameter {problem}")
    return problems + together_problems(given)


def together_problems(values: Mapping[str, str], backend: str = "tensorrtllm") -> list[str]:
    """What single values do not show: lookahead wants all of its three, xgrammar its vocabulary.

    The C++ backend reads the vocabulary from a file, upstream's Python variant makes it from the tokenizer.
    """
    problems = []
    lookahead = [key for key in PARAMETERS if key.startswith("lookahead_")]
    absent = [key for key in lookahead if not values.get(key)]
    if absent and (len(absent) < len(lookahead) or values.get("decoding_mode") == "lookahead"):
        problems.append(f"lookahead decoding wants {', '.join(lookahead)}; {', '.join(absent)} is missing")
    key, what = ("xgrammar_tokenizer_info_path", "the file of its vocabulary")
    if backend == "python":
        key, what = ("tokenizer_dir", "of which it makes its vocabulary")
    if values.get("guided_decoding_backend") and not values.get(key):
        problems.append(f"guided_decoding_backend xgrammar wants {key}, {what}")
    return problems


def _nearest(key: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key, PARAMETERS, 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(PARAMETERS)}"
