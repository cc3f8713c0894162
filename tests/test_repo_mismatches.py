"""What users of TensorRT-LLM under Triton meet as errors of the server has its rule, but for what a request shows."""

from __future__ import annotations

import pytest

from tests.test_check_repo import FAULTS
from trtbuild.finding import ERROR
from trtbuild.repo.check.rules import RULES

MISMATCHES: list[tuple[str, str]] = [
    # what the server says or does, rule
    ("Error parsing text-format inference.ModelConfig", "model-config"),
    ("unable to find backend library for backend", "model-backend"),
    ("Invalid gpt_model_type: another value, nothing, or a placeholder", "parameter-value"),
    ("Invalid gpt_model_type: no such key", "parameter-missing"),
    ("Both encoder and decoder model paths are empty", "engine-missing"),
    ("Cannot find parameter with name", "parameter-missing"),
    ("participant ids do not match the ranks", "participants"),
    ("device ids x nodes is not tp*pp*cp", "device-ids"),
    ("Runtime configured max beam width must not exceed engine max beam width", "beam-width"),
    ("Chunked context requires context FMHA, paged kv_cache and paged context FMHA", "chunked-context"),
    ("KV reuse is switched off", "kv-reuse"),
    ("KV blocks are not onboarded, with paged context FMHA", "kv-onboard"),
    ("Do not set crossKvCacheFraction for decoder-only model", "cross-attention"),
    ("Must set crossKvCacheFraction for encoder-decoder model", "cross-attention"),
    ("requires GPT attention plugin with packed input and paged KV cache", "engine-plugins"),
    ("freeGpuMemoryFraction check", "parameter-value"),
    ("Prompt length exceeds maximum input length, as chunked context is off", "input-length"),
    ("maxTokensInPagedKvCache must be large enough to process at least 1 sequence", "kv-tokens"),
    ("Non-decoupled model cannot send more than one response (llmapi)", "llmapi-yaml"),
    ("Streaming is only supported if model is deployed using decoupled mode", "decoupled"),
    ("Expected inputTokens tensors to have 2 dimensions", "batch-size"),
    ("Error encountered while populating response", "logits-type"),
    ("Not enough space allocated to host/device LoRA cache", "lora-cache"),
    ("LoRA of an engine without the plugin", "lora-plugin"),
    ("all three lookahead parameters are required", "parameter-value"),
    ("a lookahead engine has no lookahead parameters", "decoding-mode"),
    ("decoding mode is overridden by the engine's", "decoding-mode"),
    ("draft_tokens_external needs enable_kv_cache_reuse", "draft-tokens"),
    ("fast logits are switched off", "fast-logits"),
    ("weight streaming of an engine without", "weight-streaming"),
    ("unexpected deadlock, at least one output is not set", "ensemble-output"),
    ("inconsistent data type", "ensemble-type"),
    ("inconsistent shape", "ensemble-dims"),
    ("ensemble depends on a model which has no loaded version", "ensemble-model"),
    ("Stub process is not healthy: no code", "model-code"),
    ("Stub process is not healthy: no tokenizer", "tokenizer-missing"),
    ("The engine plan file is not compatible", "engine-version"),
    ("worker_path is retired", "parameter-value"),
    ("no such parameter: max_input_len", "parameter-unknown"),
    ("Xgrammar's tokenizer info path does not exist", "guided-vocabulary"),
    ("prompt tables of an engine without", "prompt-table-size"),
    ("cannot perform speculative decoding without draft model", "bls-model"),
]
"""Messages that only a request brings about are not of a repository: a full queue, logits that the engine does not
gather, an unknown LoRA id, lists of retention ranges, tensors that a request lacks or malforms, and an output beyond
max_seq_len. The number of processes is of the launch, which `trtbuild serve` checks."""
WARNED = {"kv-reuse", "kv-tokens", "lora-cache", "lora-plugin", "fast-logits", "engine-version", "parameter-unknown"}
WARNED |= {"input-length", "prompt-table-size"}


@pytest.mark.parametrize(("message", "rule"), MISMATCHES, ids=[message for message, _rule in MISMATCHES])
def test_what_the_server_would_say_has_a_rule_and_a_fault(message: str, rule: str) -> None:
    """The faults themselves are planted in test_check_repo.py; what the server refuses is an error."""
    assert rule in {planted for planted, *_ in FAULTS}
    assert (RULES[rule].severity == ERROR) == (rule not in WARNED)
