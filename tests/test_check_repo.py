"""`trtbuild check REPOSITORY`: silent on sound repositories, and every planted fault is found by its rule alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.serve_fixture import demo_tokenizer
from tests.tiny import trtbuild
from trtbuild.finding import Report
from trtbuild.repo.add import add_llmapi, add_models, add_version
from trtbuild.repo.check.rules import RULES
from trtbuild.repo.check.run import check_repository
from trtbuild.repo.llmapi import LlmapiOptions
from trtbuild.repo.options import RepositoryOptions
from trtbuild.repo.write import write_repository

Edit = Callable[[Path], None]
PLUGINS = {"use_paged_context_fmha": True, "context_fmha": True, "gpt_attention_plugin": "auto"}
VOCAB = 49152


def engine(folder: Path, target: str) -> Path:
    """The config.json that trtllm-build 1.2.1 writes (two ranks), or the cpu engine's (one); ranks are empty."""
    folder.mkdir(parents=True)
    ranks = 1 if target == "cpu" else 2
    config: dict[str, Any] = {
        "version": "1.2.1",
        "pretrained_config": {
            "vocab_size": VOCAB,
            "logits_dtype": "float32",
            "mapping": {"tp_size": ranks},
            "encoder_hidden_size": None,
        },
        "build_config": {
            "max_batch_size": 8,
            "max_seq_len": 128,
            "max_input_len": 127,
            "max_num_tokens": 64,
            "max_beam_width": 2,
            "kv_cache_type": "paged",
            "speculative_decoding_mode": 1,
            "lora_config": {"max_lora_rank": 64},
            "plugin_config": PLUGINS,
        },
    }
    if target == "cpu":
        config["trtbuild"] = {"target": "cpu"}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").touch()
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines and repositories of both targets in one folder, to be copied."""
    folder = tmp_path_factory.mktemp("sound")
    for target in ("cpu", "tensorrt"):
        built = engine(folder / f"{target}-engine", target)
        write_repository(built, folder / target, demo_tokenizer(), RepositoryOptions())
    return folder


def text(model: str, old: str, new: str, count: int = 1) -> Edit:
    """Replace a pattern in the config.pbtxt of a model."""

    def edit(repository: Path) -> None:
        path = repository / model / "config.pbtxt"
        changed, times = re.subn(old, new, path.read_text(), count=count)
        assert times
        path.write_text(changed)

    return edit


def parameter(key: str, value: str | None) -> Edit:
    """Set a parameter of tensorrt_llm, or take it away."""

    def edit(repository: Path) -> None:
        path = repository / "tensorrt_llm" / "config.pbtxt"
        known = re.sub(
            rf'parameters {{\s*key: "{key}"\s*value {{ string_value: "[^"]*" }}\s*}}\n', "", path.read_text()
        )
        added = "" if value is None else f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        path.write_text(known + added)

    return edit


def built(**changes: Any) -> Edit:
    """Change the engine's config.json: keys of build_config, or a whole part of it."""

    def edit(repository: Path) -> None:
        path = next(repository.parent.glob("*-engine")) / "config.json"
        config = json.loads(path.read_text())
        for key, value in changes.items():
            part = config if key in config else config["pretrained_config" if key in PRETRAINED else "build_config"]
            part[key] = {**part[key], **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(config))

    return edit


def instances(devices: str, count: int) -> Edit:
    """Several instances of tensorrt_llm, on these GPUs."""

    def edit(repository: Path) -> None:
        parameter("gpu_device_ids", devices)(repository)
        text("tensorrt_llm", "count: 1 kind", f"count: {count} kind")(repository)

    return edit


def not_streamed(repository: Path) -> None:
    """accumulate_tokens in a chain that is not decoupled."""
    for model in ("tensorrt_llm", "tensorrt_llm_bls"):
        text(model, "decoupled: true", "decoupled: false")(repository)
    for path in repository.glob("*/config.pbtxt"):
        path.write_text(re.sub(r"max_batch_size: \d+", "max_batch_size: 1", path.read_text()))
    text("tensorrt_llm_bls", *given("accumulate_tokens", "true"))(repository)


def ranks_of_two(repository: Path) -> None:
    """Two engines of two ranks, on GPUs of their own, that share an MPI rank."""
    several()(repository)
    for model, devices, ranks in (("tensorrt_llm", "0,1", "1,2"), ("two_tensorrt_llm", "2,3", "2,3")):
        path = repository / model / "config.pbtxt"
        lines = "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in (("gpu_device_ids", devices), ("participant_ids", ranks))
        )
        path.write_text(path.read_text() + lines)


PRETRAINED = ("vocab_size", "logits_dtype", "mapping", "encoder_hidden_size")


def gone(*names: str) -> Edit:
    def edit(repository: Path) -> None:
        for name in names:
            path = repository / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def llmapi(**changes: Any) -> Edit:
    """A sound llmapi model beside the others, then changes of its model.yaml (or its decoupled in config.pbtxt)."""

    def edit(repository: Path) -> None:
        source = repository.parent / "hf"
        source.mkdir()
        (source / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (source / "model.safetensors").touch()
        (source / "tokenizer.json").write_text("{}")
        name = add_llmapi(source, repository, LlmapiOptions(name="llm"))
        path = repository / name / "1" / "model.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    return edit


def several(*changes: tuple[str, str, str]) -> Edit:
    """A second chain of the same engine, then (model, pattern, text) changes."""

    def edit(repository: Path) -> None:
        built = next(repository.parent.glob("*-engine"))
        add_models(built, repository, demo_tokenizer(), RepositoryOptions(name="two"))
        for change in changes:
            text(*change)(repository)

    return edit


def version(engine: str | None, policy: str = "all") -> Edit:
    """A version 2 of tensorrt_llm; `engine` None takes its folder away again."""

    def edit(repository: Path) -> None:
        built = next(repository.parent.glob("*-engine"))
        add_version(built, repository, 2, RepositoryOptions(version_policy=policy))
        if engine is None:
            shutil.rmtree(repository / "tensorrt_llm" / "2")
        else:
            (repository / "tensorrt_llm" / "2" / "engine.json").write_text(json.dumps({"gpt_model_path": engine}))

    return edit


def given(key: str, value: str) -> tuple[str, str]:
    """Pattern and text that set a parameter which is written."""
    return rf'(key: "{key}"\s*value {{ string_value: )"[^"]*"', rf'\1"{value}"'


def tokenizer(name: str, **changes: Any) -> Edit:
    def edit(repository: Path) -> None:
        path = repository / "preprocessing" / "tokenizer" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def no_ends(repository: Path) -> None:
    tokenizer("generation_config.json", eos_token_id=None)(repository)
    tokenizer("tokenizer_config.json", eos_token=None)(repository)
    (repository / "preprocessing" / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)


def both(*edits: Edit) -> Edit:
    def edit(repository: Path) -> None:
        for one in edits:
            one(repository)

    return edit


def encoder(path: str, *, alone: bool = False, **parameters: str) -> Edit:
    """tensorrt_llm with an encoder, which is an engine of two ranks where `path` is empty."""

    def edit(repository: Path) -> None:
        folder = path or engine(repository.parent / "encoder-engine", "tensorrt")
        chosen = {"encoder_model_path": str(folder), "cross_kv_cache_fraction": "" if alone else "0.5", **parameters}
        chosen |= {"gpt_model_path": ""} if alone else {}
        for key, value in chosen.items():
            parameter(key, value)(repository)

    return edit


def guided(vocabulary: dict[str, Any] | None) -> Edit:
    """Guided decoding, with a file of this vocabulary or none."""

    def edit(repository: Path) -> None:
        path = repository.parent / "xgrammar.json"
        if vocabulary is not None:
            path.write_text(json.dumps(vocabulary))
        parameter("guided_decoding_backend", "xgrammar")(repository)
        parameter("xgrammar_tokenizer_info_path", str(path))(repository)

    return edit


def dims(model: str, tensor: str, old: str, new: str) -> Edit:
    return text(model, rf'(name: "{tensor}"\s*data_type: TYPE_\w+\s*dims: \[) {old} \]', rf"\1 {new} ]")


def upstreams(model: str) -> Edit:
    """Code that is not ours for a model of the Python backend."""
    return lambda repository: (repository / model / "1" / "model.py").write_text("import torch\n") and None


def python_variant(repository: Path) -> None:
    """Upstream's tensorrt_llm of the Python backend: it needs no gpt_model_type, and its vocabulary is a tokenizer."""
    text("tensorrt_llm", 'backend: "tensorrtllm"', 'backend: "python"')(repository)
    (repository / "tensorrt_llm" / "1" / "model.py").write_text("import tensorrt_llm.bindings.executor as trtllm\n")
    parameter("guided_decoding_backend", "xgrammar")(repository)
    parameter("xgrammar_tokenizer_info_path", None)(repository)
    parameter("gpt_model_type", None)(repository)


def renamed(repository: Path) -> None:
    """An engine alone, under a name of nobody's, without the batch dimension."""
    gone("preprocessing", "postprocessing", "ensemble", "tensorrt_llm_bls")(repository)
    text("tensorrt_llm", r"max_batch_size: \d+", "max_batch_size: 0")(repository)
    text("tensorrt_llm", 'name: "tensorrt_llm"', 'name: "context"')(repository)
    (repository / "tensorrt_llm").rename(repository / "context")


def damaged(name: str) -> Edit:
    """An engine whose plugins are not said as an object."""

    def edit(repository: Path) -> None:
        path = repository.parent / name / "config.json"
        path.write_text(path.read_text().replace(json.dumps(PLUGINS), '"auto"'))

    return edit


def unknown_batching(repository: Path) -> None:
    """No gpt_model_type to know tensorrt_llm by, and no engine."""
    parameter("gpt_model_type", None)(repository)
    parameter("gpt_model_path", "/nowhere")(repository)


FAULTS: list[tuple[str, str, Edit]] = [
    # rule, target, fault
    ("model-config", "cpu", text("ensemble", r"max_batch_size: \d+", "max_batch_size: ${triton_max_batch_size}")),
    ("model-config", "tensorrt", text("tensorrt_llm", "TYPE_FP32", "${logits_datatype}")),
    ("model-placeholder", "tensorrt", parameter("decoding_mode", "${decoding_mode}")),
    ("model-name", "tensorrt", text("tensorrt_llm", '"tensorrt_llm"', '"llm"')),
    ("model-version", "cpu", gone("ensemble/1")),
    ("model-code", "cpu", gone("preprocessing/1/model.py")),
    ("model-backend", "tensorrt", text("tensorrt_llm", '"tensorrtllm"', '"${triton_backend}"')),
    ("model-backend", "tensorrt", text("postprocessing", '"python"', '"pyton"')),
    ("parameter-missing", "tensorrt", parameter("tokenizer_dir", None)),
    ("parameter-missing", "tensorrt", parameter("xgrammar_tokenizer_info_path", None)),
    ("parameter-missing", "tensorrt", parameter("gpt_model_type", None)),
    ("parameter-missing", "cpu", text("preprocessing", '"tokenizer_dir"', '"tokenizer"')),
    ("parameter-missing", "cpu", text("postprocessing", '"tokenizer_dir"', '"tokenizer"')),
    ("parameter-missing", "cpu", text("tensorrt_llm_bls", '"tokenizer_dir"', '"tokenizer"')),
    ("parameter-missing", "tensorrt",
     both(upstreams("preprocessing"), text("preprocessing", '"multimodal_model_path"', '"multimodal"'))),
    ("parameter-value", "cpu", text("postprocessing", *given("skip_special_tokens", "maybe"))),
    ("parameter-value", "cpu", text("preprocessing", *given("add_special_tokens", "on"))),
    ("parameter-value", "cpu", text("preprocessing", *given("max_input_len", "127x"))),
    ("parameter-value", "cpu", text("tensorrt_llm_bls", *given("accumulate_tokens", "off"))),
    ("parameter-value", "tensorrt", parameter("gpt_model_type", "inflight")),
    ("parameter-value", "tensorrt", parameter("gpt_model_type", "")),
    ("parameter-value", "tensorrt", parameter("gpt_model_type", "${batching_strategy}")),
    ("parameter-value", "tensorrt", parameter("batch_scheduler_policy", "fast")),
    ("parameter-value", "tensorrt", parameter("kv_cache_free_gpu_mem_fraction", "1.0")),
    ("parameter-value", "tensorrt", parameter("max_tokens_in_paged_kv_cache", "2560x")),
    ("parameter-value", "tensorrt", parameter("exclude_input_in_output", "yes")),
    ("parameter-value", "tensorrt", parameter("worker_path", "/w")),
    ("parameter-value", "tensorrt", parameter("lookahead_window_size", "4")),
    ("parameter-value", "tensorrt", parameter("guided_decoding_backend", "xgrammar")),
    ("parameter-value", "tensorrt", both(python_variant, parameter("tokenizer_dir", ""))),
    ("parameter-unknown", "tensorrt", parameter("max_input_len", "100")),
    ("engine-missing", "tensorrt", parameter("gpt_model_path", "/nowhere")),
    ("engine-missing", "cpu", gone("../cpu-engine/rank0.engine")),
    ("engine-missing", "cpu", unknown_batching),
    ("engine-missing", "tensorrt", unknown_batching),
    ("engine-missing", "tensorrt", encoder("/nowhere")),
    ("engine-missing", "tensorrt", encoder("/nowhere", alone=True)),
    ("engine-missing", "tensorrt", parameter("gpt_model_path", "")),
    ("engine-config", "cpu", built(max_seq_len="long")),
    ("engine-config", "tensorrt", built(lora_config=[64])),
    ("engine-config", "tensorrt", both(encoder("", alone=True), damaged("encoder-engine"))),
    ("engine-target", "cpu", text("tensorrt_llm", 'backend: "python"', 'backend: "tensorrtllm"')),
    ("engine-target", "cpu", built(trtbuild={"target": "tensorrt"})),
    ("engine-plugins", "tensorrt", built(plugin_config={"remove_input_padding": False})),
    ("engine-version", "tensorrt", built(version="1.1.0")),
    ("beam-width", "tensorrt", parameter("max_beam_width", "3")),
    ("batch-size", "cpu", text("postprocessing", r"max_batch_size: \d+", "max_batch_size: 0")),
    ("batch-size", "tensorrt",
     both(gone("preprocessing", "postprocessing", "ensemble", "tensorrt_llm_bls"),
          text("tensorrt_llm", r"max_batch_size: \d+", "max_batch_size: 0"))),
    ("batch-size", "tensorrt", renamed),
    ("batch-above-engine", "tensorrt", built(max_batch_size=4)),
    ("chunked-context", "tensorrt", built(plugin_config={"context_fmha": False})),
    ("kv-reuse", "tensorrt", built(gather_context_logits=True)),
    ("kv-tokens", "cpu", parameter("max_tokens_in_paged_kv_cache", "64")),
    ("input-length", "tensorrt", parameter("enable_chunked_context", "false")),
    ("logits-type", "tensorrt", built(logits_dtype="float16")),
    ("cross-attention", "tensorrt", parameter("cross_kv_cache_fraction", "0.5")),
    ("cross-attention", "tensorrt", built(encoder_hidden_size=64)),
    ("cross-attention", "tensorrt", encoder("", cross_kv_cache_fraction="")),
    ("kv-onboard", "tensorrt", parameter("kv_cache_onboard_blocks", "false")),
    ("weight-streaming", "tensorrt", parameter("gpu_weights_percent", "0.5")),
    ("lora-plugin", "tensorrt", parameter("lora_cache_max_adapter_size", "32")),
    ("lora-cache", "tensorrt", built(plugin_config={"lora_plugin": "auto"}, lora_config={"max_lora_rank": 128})),
    ("decoding-mode", "tensorrt", parameter("decoding_mode", "medusa")),
    ("decoding-mode", "tensorrt", both(built(speculative_decoding_mode=4), parameter("decoding_mode", "top_k"))),
    ("decoding-mode", "tensorrt", built(speculative_decoding_mode=8)),
    ("draft-tokens", "tensorrt",
     both(built(speculative_decoding_mode=2), parameter("enable_kv_cache_reuse", "false"))),
    ("draft-tokens", "tensorrt", built(speculative_decoding_mode=2, gather_context_logits=True)),
    ("fast-logits", "tensorrt", parameter("speculative_decoding_fast_logits", "true")),
    ("fast-logits", "tensorrt",
     both(parameter("speculative_decoding_fast_logits", "true"), parameter("participant_ids", "0,1"))),
    ("guided-vocabulary", "tensorrt", guided(None)),
    ("guided-vocabulary", "tensorrt", guided({"encoded_vocab": []})),
    ("prompt-table", "tensorrt", text("tensorrt_llm", r'(_embedding_table"\s*data_type: TYPE_)FP16', r"\1BF16")),
    ("prompt-table-size", "tensorrt", text("preprocessing", *given("multimodal_model_path", "/vision"))),
    ("prompt-table-size", "tensorrt", text("tensorrt_llm", r'("prompt_embedding_table"[^}]*)optional: true', r"\1")),
    ("device-ids", "tensorrt", parameter("gpu_device_ids", "0,1,2")),
    ("participants", "tensorrt", parameter("participant_ids", "1,2;3")),
    ("instance-group", "tensorrt", text("tensorrt_llm", "count: 1 kind: KIND_CPU", "count: 1 kind: KIND_GPU")),
    ("instance-group", "tensorrt", text("tensorrt_llm", "count: 1 kind: KIND_CPU", "count: 2 kind: KIND_CPU")),
    ("instance-group", "tensorrt", instances("0,1;2,3", 3)),
    ("stream-order", "cpu", text("postprocessing", "count: 1", "count: 4")),
    ("decoupled", "tensorrt", text("tensorrt_llm", "decoupled: true", "decoupled: false")),
    ("decoupled", "tensorrt", text("tensorrt_llm_bls", "decoupled: true", "decoupled: false")),
    ("decoupled", "cpu", several(("two_tensorrt_llm_bls", "decoupled: true", "decoupled: false"))),
    ("stream-order", "cpu", several(("two_postprocessing", "count: 1", "count: 2"))),
    ("batch-size", "cpu", several(("two_ensemble", r"max_batch_size: \d+", "max_batch_size: 3"))),
    ("engine-missing", "cpu", several(("two_tensorrt_llm", *given("gpt_model_path", "/nowhere")))),
    ("engine-missing", "cpu", version("/nowhere")),
    ("version-policy", "cpu", version(None, "1,2")),
    ("model-code", "cpu", lambda repository: (repository / "preprocessing" / "2").mkdir()),
    ("bls-model", "cpu", text("tensorrt_llm_bls", *given("tensorrt_llm_model_name", "llm"))),
    ("bls-model", "cpu", several(("two_tensorrt_llm_bls", *given("preprocessing_model_name", "two")))),
    ("bls-model", "cpu", text("tensorrt_llm_bls", *given("tensorrt_llm_draft_model_name", "draft"))),
    ("bls-model", "tensorrt",
     both(text("tensorrt_llm_bls", *given("multimodal_encoders_name", "vision")),
          built(max_prompt_embedding_table_size=9))),
    ("bls-model", "tensorrt",
     both(text("tensorrt_llm_bls", '"preprocessing_model_name"', '"other"'), gone("postprocessing", "ensemble"))),
    ("bls-type", "tensorrt", text("tensorrt_llm_bls", r'(name: "seq\w+"\s*data_type: )TYPE_INT32', r"\1TYPE_INT64")),
    ("accumulate-tokens", "cpu", not_streamed),
    ("shared-gpus", "tensorrt", several()),
    ("participants", "tensorrt", ranks_of_two),
    ("llmapi-yaml", "cpu", llmapi(triton_config={"max_batch_size": 0, "decoupled": False})),
    ("llmapi-yaml", "cpu", llmapi(triton_config={"max_batch_size": 4, "decoupled": True})),
    ("llmapi-unknown", "cpu", llmapi(tensor_parallel="2")),
    ("llmapi-argument", "cpu", llmapi(kv_cache_config=None)),
    ("llmapi-argument", "cpu", llmapi(tensor_parallel_size="2")),
    ("llmapi-argument", "cpu", llmapi(backend="tensorrt")),
    ("llmapi-model", "cpu", llmapi(model="/nowhere")),
    ("ensemble-model", "cpu", gone("postprocessing")),
    ("ensemble-tensor", "cpu", text("ensemble", 'key: "runtime_top_k"', 'key: "top_k"')),
    ("ensemble-tensor", "cpu", text("ensemble", 'value: "seed"', 'value: "sead"')),
    ("ensemble-type", "cpu", text("ensemble", r'(name: "seed"\s*data_type: )TYPE_UINT64', r"\1TYPE_INT32")),
    ("ensemble-dims", "cpu", dims("ensemble", "seed", "1", "2")),
    ("ensemble-dims", "cpu", dims("tensorrt_llm", "output_ids", "-1, -1", "-1")),
    ("ensemble-dims", "cpu", dims("ensemble", "text_output", "-1", "-1, 1")),
    ("ensemble-required", "cpu", text("ensemble", r'input_map {\s*key: "QUERY"\s*value: "text_input"\s*}', "")),
    ("ensemble-output", "cpu", text("ensemble", r'output_map {\s*key: "OUTPUT"\s*value: "text_output"\s*}', "")),
    ("tokenizer-missing", "cpu", gone("preprocessing/tokenizer/tokenizer.json")),
    ("tokenizer-vocab", "cpu", built(vocab_size=VOCAB - 1)),
    ("tokenizer-vocab", "cpu", tokenizer("generation_config.json", eos_token_id=[2, VOCAB])),
    ("tokenizer-vocab", "cpu", tokenizer("generation_config.json", pad_token_id=VOCAB + 5)),
    ("tokenizer-ends", "cpu", no_ends),
]  # fmt: skip
TOGETHER = {
    "model-config": {"ensemble-model", "bls-model"},  # a model that cannot be read is missing where it is used
    "chunked-context": {"engine-plugins", "kv-reuse"},
    "input-length": set(),
    "prompt-table": {"ensemble-type"},
    "model-placeholder": set(),
    "batch-size": {"ensemble-type"},
    "engine-missing": {"parameter-missing"},
    "engine-target": {"parameter-unknown", "engine-version", "engine-plugins"},
    "draft-tokens": {"kv-reuse"},
}


def copy(sound: Path, target: str, to: Path) -> Path:
    """A repository with its engine, whose path is written in it."""
    for name in (target, f"{target}-engine"):
        shutil.copytree(sound / name, to / name)
    for path in (to / target).glob("*/config.pbtxt"):
        path.write_text(path.read_text().replace(str(sound), str(to)))
    return to / target


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_a_repository_of_ours_is_sound(sound: Path, target: str) -> None:
    report = check_repository(sound / target)
    assert not report.findings


def test_several_chains_versions_and_llmapi_are_sound(sound: Path, tmp_path: Path) -> None:
    repository = copy(sound, "cpu", tmp_path)
    several()(repository)
    version(str(tmp_path / "cpu-engine"))(repository)
    llmapi()(repository)
    report = check_repository(repository)
    assert not report.findings


SOUND: list[tuple[str, str, Edit]] = [
    ("encoder and decoder", "tensorrt", both(encoder(""), built(encoder_hidden_size=64))),
    ("an encoder alone", "tensorrt", encoder("", alone=True)),
    ("guided decoding", "tensorrt", guided({"encoded_vocab": [], "tokenizer_str": "{}", "stop_token_ids": []})),
    ("images", "tensorrt",
     both(text("preprocessing", *given("multimodal_model_path", "/vision")), built(max_prompt_embedding_table_size=9))),
    ("the Python variant", "tensorrt", python_variant),
    ("upstream's text models", "tensorrt", both(upstreams("preprocessing"), upstreams("postprocessing"))),
    ("an engine alone", "tensorrt", gone("preprocessing", "postprocessing", "ensemble", "tensorrt_llm_bls")),
    ("fast logits", "tensorrt",
     both(parameter("speculative_decoding_fast_logits", "true"), parameter("participant_ids", "1,2"))),
    ("draft tokens", "tensorrt", built(speculative_decoding_mode=2)),
    ("medusa", "tensorrt", built(speculative_decoding_mode=4)),
    ("medusa by name", "tensorrt", both(built(speculative_decoding_mode=4), parameter("decoding_mode", "medusa"))),
    ("lookahead", "tensorrt",
     both(built(speculative_decoding_mode=8), *(parameter(f"lookahead_{name}_size", "2") for name in
                                                ("window", "ngram", "verification_set")))),
]  # fmt: skip
"""What TensorRT-LLM serves, and earlier or simpler rules would refuse."""


@pytest.mark.parametrize(("name", "target", "change"), SOUND, ids=[name for name, *_ in SOUND])
def test_uncommon_repositories_are_sound(sound: Path, tmp_path: Path, name: str, target: str, change: Edit) -> None:
    repository = copy(sound, target, tmp_path)
    change(repository)
    assert not check_repository(repository, read_tokenizers=False).findings


def test_an_engine_of_a_large_lora_rank_gets_a_cache_for_it(sound: Path, tmp_path: Path) -> None:
    repository = copy(sound, "tensorrt", tmp_path)
    built(plugin_config={"lora_plugin": "auto"}, lora_config={"max_lora_rank": 128})(repository)
    assert rules(check_repository(repository, read_tokenizers=False)) == {"lora-cache"}
    write_repository(tmp_path / "tensorrt-engine", tmp_path / "new", demo_tokenizer(), RepositoryOptions())
    assert not check_repository(tmp_path / "new", read_tokenizers=False).findings


@pytest.mark.parametrize(
    ("rule", "target", "fault"), FAULTS, ids=[f"{number}-{rule}" for number, (rule, *_) in enumerate(FAULTS)]
)
def test_faults_are_found(sound: Path, tmp_path: Path, rule: str, target: str, fault: Edit) -> None:
    repository = copy(sound, target, tmp_path)
    fault(repository)
    slow = rule.startswith("tokenizer")
    found = rules(check_repository(repository, read_tokenizers=slow))
    assert rule in found
    assert found <= {rule} | TOGETHER.get(rule, set())


def test_every_rule_has_a_fault() -> None:
    without = {"not-a-repository", "tokenizer-ids", "tokenizer-bos", "chat-template"}
    assert {rule for rule, *_ in FAULTS} | without == set(RULES)


def test_tokenizer_files_of_two_models_and_a_second_bos(sound: Path, tmp_path: Path) -> None:
    repository = copy(sound, "cpu", tmp_path)
    folder = repository / "preprocessing" / "tokenizer"
    tokenizer("tokenizer.json", post_processor=_adds("<|im_start|>", 1))(repository)
    template = "{{ '<|im_start|>' }}{{ messages[0].content }}"
    tokenizer("tokenizer_config.json", chat_template=template, add_bos_token=True)(repository)
    for path in folder.glob("chat_template*"):
        path.write_text(template)
    assert rules(check_repository(repository)) == {"tokenizer-bos"}
    for path in folder.glob("chat_template*"):
        path.unlink()
    tokenizer("tokenizer_config.json", chat_template=None)(repository)
    assert rules(check_repository(repository)) == {"chat-template"}


@pytest.mark.parametrize(
    ("template", "severity", "words"),
    [
        ("{% for message in messages %}{{ message.content }}", "error", "cannot be read"),
        ("{{ messages | no_such_filter }}", "error", "cannot be read"),
        ("{{ raise_exception('only with a system message') }}", "warning", "only with a system message"),
        ("{{ messages[0].content + 1 }}", "warning", "refuses"),
        ("{{ messages[0].name.first }}", "warning", "refuses"),
    ],
)
def test_a_broken_chat_template(sound: Path, tmp_path: Path, template: str, severity: str, words: str) -> None:
    repository = copy(sound, "cpu", tmp_path)
    path = repository / "preprocessing" / "tokenizer" / "chat_template.jinja"
    path.write_text(template)
    (finding,) = check_repository(repository).findings
    assert (finding.rule, finding.severity) == ("chat-template", severity)
    assert words in finding.found


def _adds(token: str, number: int) -> dict[str, Any]:
    """A post-processor that puts `token` before each text."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    special = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second],
        "special_tokens": special,
    }


def test_the_command(sound: Path, tmp_path: Path) -> None:
    done = trtbuild("check", sound / "tensorrt", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["kind"], document["ok"], document["findings"]) == ("repository", True, [])
    repository = copy(sound, "tensorrt", tmp_path)
    for fault in (parameter("max_beam_width", "9"), parameter("gpt_model_type", "v9")):
        fault(repository)
    done = trtbuild("check", repository, "--no-data")
    assert done.returncode == 3
    assert "beam-width" in done.stdout
    assert "parameter-value" in done.stdout
    assert "2 errors" in done.stderr


def test_a_configuration_that_is_no_text(sound: Path, tmp_path: Path) -> None:
    repository = copy(sound, "cpu", tmp_path)
    (repository / "postprocessing" / "config.pbtxt").write_bytes(b"name: \xff\xfe")
    assert "model-config" in rules(check_repository(repository, read_tokenizers=False))
