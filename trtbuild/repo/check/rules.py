"""The rules for Triton repositories; without them a user meets the texts of Triton and TensorRT-LLM. PURE."""

from __future__ import annotations

from trtbuild.finding import ERROR, INFO, WARNING, Check, Finding

RULES: dict[str, Check] = {
    # files
    "not-a-repository": Check(ERROR, "the folder holds models with a config.pbtxt"),
    "model-config": Check(ERROR, "every config.pbtxt is a model configuration, with no ${placeholder} for a number"),
    "model-placeholder": Check(WARNING, "no ${placeholder} is left: the backend takes it for unset"),
    "model-name": Check(ERROR, "a model has the name of its folder"),
    "model-version": Check(ERROR, "a model has a version directory, be it empty"),
    "version-policy": Check(ERROR, "every version that the policy names has its folder"),
    "model-code": Check(ERROR, "a model of the python backend has model.py in its version"),
    "model-backend": Check(ERROR, "the backend is tensorrtllm or python, or the platform ensemble"),
    # parameters of tensorrt_llm
    "parameter-missing": Check(ERROR, "keys that the backend reads without a guard are there"),
    "parameter-value": Check(ERROR, "values can be read by the backend and are in range"),
    "parameter-unknown": Check(WARNING, "no key that the backend does not know"),
    # against the engine
    "engine-missing": Check(ERROR, "gpt_model_path and encoder_model_path are whole engines, and one of them is given"),
    "engine-config": Check(ERROR, "config.json of an engine has its sizes and settings in TensorRT-LLM's form"),
    "engine-target": Check(
        ERROR, "a cpu engine is behind our Python model, one of TensorRT behind TensorRT-LLM's backend"
    ),
    "engine-plugins": Check(ERROR, "the engine has packed input, a paged KV cache and the attention plugin"),
    "engine-version": Check(WARNING, "the engine is of the TensorRT-LLM release that the container has"),
    "beam-width": Check(ERROR, "max_beam_width is within the engine's"),
    "batch-size": Check(ERROR, "models of one chain have the same max_batch_size, 1 or more"),
    "batch-above-engine": Check(WARNING, "no request batch is larger than what the engine runs at once"),
    "chunked-context": Check(ERROR, "enable_chunked_context only where the engine has paged context attention"),
    "kv-reuse": Check(WARNING, "enable_kv_cache_reuse only where the engine can"),
    "kv-onboard": Check(ERROR, "kv_cache_onboard_blocks false only without paged context attention"),
    "kv-tokens": Check(WARNING, "the KV cache holds at least one longest sequence"),
    "input-length": Check(INFO, "prompts may be as long as the engine's sequences"),
    "logits-type": Check(ERROR, "logits have the dtype that the engine gives"),
    "cross-attention": Check(ERROR, "cross_kv_cache_fraction exactly where there is an encoder"),
    "weight-streaming": Check(ERROR, "gpu_weights_percent below 1 only with weight streaming"),
    "lora-plugin": Check(WARNING, "LoRA settings only with an engine that has the plugin"),
    "lora-cache": Check(WARNING, "the LoRA cache holds an adapter of the engine's rank"),
    "decoding-mode": Check(ERROR, "decoding_mode is what the engine was built for, with all that the mode needs"),
    "draft-tokens": Check(ERROR, "an engine that verifies draft tokens of another model reuses KV blocks"),
    "fast-logits": Check(WARNING, "speculative_decoding_fast_logits only in orchestrator mode without spawning"),
    "guided-vocabulary": Check(ERROR, "the vocabulary for guided decoding can be read"),
    "prompt-table": Check(WARNING, "prompt tables have one dtype in all models"),
    "prompt-table-size": Check(WARNING, "prompt tables only with an engine that was built for them"),
    "device-ids": Check(ERROR, "gpu_device_ids x num_nodes names a GPU for every rank"),
    "participants": Check(ERROR, "participant_ids fit the ranks and the mode"),
    "instance-group": Check(ERROR, "one instance of tensorrt_llm on KIND_CPU, or GPUs or tokens for each"),
    "stream-order": Check(ERROR, "one instance of postprocessing: it keeps the state of the streams"),
    "decoupled": Check(ERROR, "streaming and request batches want decoupled, the same in the models of a chain"),
    "bls-model": Check(ERROR, "the models that tensorrt_llm_bls calls are in the repository"),
    "bls-type": Check(ERROR, "what tensorrt_llm_bls passes on has the data type that tensorrt_llm gives it"),
    "accumulate-tokens": Check(WARNING, "accumulate_tokens only where answers are streamed"),
    "shared-gpus": Check(WARNING, "several engines have GPUs of their own, or a number of tokens each"),
    "llmapi-yaml": Check(ERROR, "model.yaml can be read and agrees with config.pbtxt"),
    "llmapi-argument": Check(ERROR, "arguments in model.yaml are of the right kind"),
    "llmapi-unknown": Check(WARNING, "model.yaml has arguments of tensorrt_llm.LLM only"),
    "llmapi-model": Check(ERROR, "model.yaml names a Hugging Face checkpoint"),
    # flow of the ensemble
    "ensemble-model": Check(ERROR, "every step of an ensemble is a model of the repository"),
    "ensemble-tensor": Check(ERROR, "maps name tensors that exist on both sides"),
    "ensemble-type": Check(ERROR, "a tensor has one data type on its whole way"),
    "ensemble-dims": Check(ERROR, "a tensor has dims on its whole way that fit, -1 to any"),
    "ensemble-required": Check(ERROR, "inputs that a model requires are mapped"),
    "ensemble-output": Check(ERROR, "every output of an ensemble is made by a step"),
    # tokenizer
    "tokenizer-missing": Check(ERROR, "tokenizer_dir holds a tokenizer"),
    "tokenizer-vocab": Check(ERROR, "no token id, end or pad ids among them, is beyond the engine's vocabulary"),
    "tokenizer-ends": Check(ERROR, "there is an end-of-sequence token"),
    "tokenizer-ids": Check(ERROR, "preprocessing gives the ids that transformers gives"),
    "tokenizer-bos": Check(WARNING, "a chat template that writes BOS is not followed by a second one"),
    "chat-template": Check(INFO, "the tokenizer has a chat template, which can be read and takes a message"),
}


def found(rule: str, where: str, expected: str, what: str, hint: str = "", severity: str = "") -> Finding:
    """A finding with the rule's own severity, unless another is given."""
    return Finding(rule, severity or RULES[rule].severity, where, expected, what, hint)
