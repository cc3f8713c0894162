"""Options of trtllm-build: our table, what becomes of them, and the stand-in's own reading of the same facts."""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

from trtbuild.engine.options import BuildOptions, LoraOptions, PluginOptions, changed
from trtbuild.engine.tensorrt.build_config import ALWAYS, plan_build, request, with_timing_cache
from trtbuild.engine.tensorrt.options_table import BY_NAME, FLAG, INT, LIST, OPTIONS, REMOVED, SWITCH
from trtbuild.engine.tensorrt.settings import setting_paths, with_settings
from trtbuild.errors import PlanError

LLAMA: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "dtype": "float16",
    "max_position_embeddings": 4096,
    "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
}


def config(algo: str | None = None, kv: str | None = None, tp: int = 2, **more: Any) -> dict[str, Any]:
    mapping = {"world_size": tp, "tp_size": tp, "pp_size": 1}
    return {**LLAMA, "mapping": mapping, "quantization": {"quant_algo": algo, "kv_cache_quant_algo": kv}, **more}


def refusals(options: BuildOptions, pretrained: dict[str, Any] | None = None, sm: int | None = 90) -> str:
    with pytest.raises(PlanError) as caught:
        plan_build(options, pretrained or LLAMA, sm)
    return "\n".join(caught.value.problems)


def plugins(**values: Any) -> BuildOptions:
    return BuildOptions(plugin_config=PluginOptions(**values))


def test_the_table_is_the_command_line_of_the_stand_in(stand_in: pytest.MonkeyPatch) -> None:
    """Names, aliases, types, choices and defaults, both ways."""
    stand_in.setitem(__import__("sys").modules, "torch", SimpleNamespace(cuda=SimpleNamespace()))
    from tensorrt_llm.commands.build import parse_arguments

    theirs = {word.lstrip("-"): action for action in parse_arguments()._actions for word in action.option_strings}
    for name in ("h", "help"):
        del theirs[name]
    assert set(BY_NAME) == set(theirs)
    for name, action in theirs.items():
        option = BY_NAME[name]
        assert (option.kind == FLAG) == isinstance(action, argparse._StoreTrueAction), name
        assert (option.kind == INT) == (action.type is int), name
        assert (option.kind == LIST) == (action.nargs == "+"), name
        assert option.default == action.default, name
        assert set(option.choices) == set(action.choices or ()), name
        assert (option.kind == SWITCH) == (set(option.choices) == {"enable", "disable"} and name != "lora_plugin"), name


def test_every_field_has_the_option_with_its_choices_and_default() -> None:
    hints = {f"plugin_config.{name}": hint for name, hint in get_type_hints(PluginOptions).items()}
    hints |= get_type_hints(BuildOptions) | {
        f"lora_config.{n}": hint for n, hint in get_type_hints(LoraOptions).items()
    }
    of_field = {option.field: option for option in OPTIONS if option.field}
    without = {"opt_batch_size", "force_num_profiles"}  # of BuildConfig, with no option
    assert set(of_field) == set(setting_paths()) - without
    usual = PluginOptions()
    for item in fields(PluginOptions):
        option, value = of_field[f"plugin_config.{item.name}"], getattr(usual, item.name)
        if option.kind == SWITCH:
            assert option.default == ("enable" if value else "disable")
        else:
            assert option.default == value
        words = re.findall(r"'(\w+)'", str(hints[option.field]))  # of the Literal
        assert option.kind in (SWITCH, INT) or set(option.choices) == set(words)


def test_removed_options_are_refused_each_with_what_became_of_it() -> None:
    with pytest.raises(PlanError) as caught:
        with_settings(BuildOptions(), [f"{name}=1" for name in REMOVED] + ["gemm_plugins=auto", "dry_run=1"])
    text = str(caught.value)
    assert len(caught.value.problems) == len(REMOVED) + 2
    assert "auto_parallel: removed in 1.2" in text
    assert "max_output_len: removed in 0.11: max_seq_len counts prompt and output together" in text
    assert "gemm_plugins is no option of trtllm-build 1.2.1; did you mean gemm_plugin?" in text
    assert "dry_run: trtbuild decides it itself" in text


def test_settings_go_by_option_or_field() -> None:
    made = with_settings(
        BuildOptions(max_batch_size=4),
        [
            *("gemm_plugin=auto", "plugin_config.reduce_fusion=enable", "--strip-plan=true", "max_beam_width=3"),
            *("lora_target_modules=attn_q,attn_v", "logits_dtype=float16", "lora_dir=/a,/b", "max_multimodal_len=9"),
        ],
    )
    assert changed(made) == [
        *("max_batch_size", "max_beam_width", "max_prompt_embedding_table_size", "logits_dtype", "use_strip_plan"),
        *("lora_config.lora_dir", "lora_config.lora_target_modules"),
        *("plugin_config.gemm_plugin", "plugin_config.reduce_fusion"),
    ]
    assert made.lora_config.lora_target_modules == ("attn_q", "attn_v")
    assert made.lora_config.lora_dir == (Path("/a"), Path("/b"))
    with pytest.raises(PlanError) as caught:
        with_settings(
            BuildOptions(), ["gemm_plugin=int8", "max_beam_width=two", "reduce_fusion=perhaps", "paged_state"]
        )
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        *("gemm_plugin", "max_beam_width", "reduce_fusion", "paged_state"),
    ]


def test_build_config_is_what_every_release_reads(stand_in: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The seven keys that are never left out, real booleans, null for what is off; the stand-in is strict."""
    from tensorrt_llm.builder import BuildConfig

    made = request(BuildOptions().resolved("tensorrt"), LLAMA)
    assert set(ALWAYS) <= made.keys()
    assert made["max_batch_size"] == 2048
    assert made["max_num_tokens"] == 8192
    assert made["speculative_decoding_mode"] == 1
    assert made["plugin_config"]["gemm_swiglu_plugin"] is None
    assert made["plugin_config"]["use_fused_mlp"] is True
    path = tmp_path / "build_config.json"
    path.write_text(json.dumps(with_timing_cache(made, None, "/cache")))
    assert BuildConfig.from_json_file(str(path)).output_timing_cache == "/cache"
    for key in ALWAYS:
        path.write_text(json.dumps({name: value for name, value in made.items() if name != key}))
        with pytest.raises(KeyError):
            BuildConfig.from_json_file(str(path))


@pytest.mark.parametrize(
    ("options", "pretrained", "sm", "said"),
    [
        (BuildOptions(gather_context_logits=True, max_draft_len=3), config(), 90, "gather_context_logits cannot"),
        (BuildOptions(opt_num_tokens=64, plugin_config=PluginOptions(multiple_profiles=True)), config(), 90, "exclude"),
        (plugins(gemm_swiglu_plugin="fp8", use_fused_mlp=False), config(), 90, "gemm_swiglu_plugin need use_fused_mlp"),
        (plugins(tokens_per_block=48), config(), 90, "tokens_per_block 48 must be a power of two"),
        (plugins(streamingllm=True), config(), 90, "streamingllm is no longer supported"),
        (plugins(pp_reduce_scatter=True), config(), 90, "MixtralForCausalLM only"),
        (
            plugins(low_latency_gemm_plugin="fp8"),
            config("FP8"),
            100,
            "low_latency_gemm_plugin is not supported on SM 100",
        ),
        (plugins(bert_context_fmha_fp32_acc=True), config(), 100, "bert_context_fmha_fp32_acc"),
        (BuildOptions(), config("W8A16"), 100, "int8 and int4 weights are not supported on SM 100"),
        (BuildOptions(), config("W4A16_AWQ"), 103, "int8 and int4 weights"),
        (BuildOptions(), config("W8A8_SQ_PER_CHANNEL"), 100, "SmoothQuant"),
        (BuildOptions(), config("FP8_PER_CHANNEL_PER_TOKEN"), 100, "per channel and per token"),
        (BuildOptions(), config(kv="INT8"), 100, "int8 KV cache is not supported on SM 100"),
        (BuildOptions(), config("FP8"), 86, "quant_algo FP8 needs SM 89"),
        (BuildOptions(), config(kv="FP8"), 80, "fp8 KV cache needs SM 89"),
        (BuildOptions(), config("NVFP4"), 90, "NVFP4 needs SM 100"),
        (BuildOptions(), config(), 70, "no engines for SM 70"),
        (BuildOptions(speculative_decoding_mode="medusa"), config(), 90, "needs max_draft_len above 0"),
        (
            BuildOptions(speculative_decoding_mode="eagle", max_draft_len=300),
            config(num_eagle_layers=4),
            90,
            "max_batch_size up to 512, not 2048\nEAGLE takes max_draft_len up to 256, not 300",
        ),
        (BuildOptions(max_batch_size=0, max_seq_len=1), config(), 90, "max_batch_size 0 must be at least 1"),
        (BuildOptions(max_seq_len=64), config(architecture="EncoderModel"), 90, "equal max_input_len and max_seq_len"),
        (BuildOptions(lora_config=LoraOptions(lora_target_modules=("q_proj",))), config(), 90, "q_proj: known are"),
    ],
)
def test_refusals(options: BuildOptions, pretrained: dict[str, Any], sm: int, said: str) -> None:
    assert said in refusals(options, pretrained, sm)


def test_all_refusals_come_together() -> None:
    text = refusals(plugins(streamingllm=True, tokens_per_block=3, gemm_swiglu_plugin="fp8"), config("W4A16"), 100)
    assert all(word in text for word in ("streamingllm", "tokens_per_block", "gemm_swiglu_plugin is not", "W4A16"))


@pytest.mark.parametrize(
    ("options", "pretrained", "field", "value", "said"),
    [
        (BuildOptions(), config(), "max_seq_len", 4096, "4096 is deduced"),
        (
            BuildOptions(),
            config(max_position_embeddings=131072),
            "max_seq_len",
            131072,
            "set max_seq_len to what requests",
        ),
        (BuildOptions(), config(rotary_scaling={"type": "linear", "factor": 2.0}), "max_seq_len", 8192, "8192"),
        (BuildOptions(), config(rotary_scaling={"rope_type": "llama3", "factor": 8.0}), "max_seq_len", 4096, "4096"),
        (BuildOptions(max_seq_len=5000), config(), "max_seq_len", 5000, "beyond the 4096 tokens"),
        (BuildOptions(max_batch_size=2, max_seq_len=100), config(), "max_num_tokens", 200, "8192 will become 200"),
        (BuildOptions(1, 99, 16), config(), "max_num_tokens", 32, "a step takes at least one block"),
        (
            BuildOptions(64, 1024, 64, speculative_decoding_mode="draft_tokens_external", max_draft_len=4),
            config(),
            "max_num_tokens",
            320,
            "max_seq_len 1024 will become 1028",
        ),
        (
            BuildOptions(8, 1024, speculative_decoding_mode="eagle", max_draft_len=4),
            config(num_eagle_layers=3),
            "max_seq_len",
            1031,
            "1028 will become 1031",
        ),
        (plugins(reduce_fusion=True), config(tp=1), "reduce_fusion", False, "no all-reduce with tp 1"),
        (
            plugins(reduce_fusion=True),
            config(architecture="PhiForCausalLM"),
            "reduce_fusion",
            False,
            "does not have it",
        ),
        (plugins(reduce_fusion=True, user_buffer=True), config(), "user_buffer", True, ""),
        (plugins(user_buffer=True), config(), "user_buffer", False, "needs reduce_fusion"),
        (plugins(norm_quant_fusion=True), config("FP8"), "norm_quant_fusion", False, "NVFP4"),
        (plugins(context_fmha=False), config(), "use_paged_context_fmha", False, "neither KV cache reuse nor chunked"),
        (BuildOptions(), config(kv="FP8"), "use_paged_context_fmha", False, "neither KV cache reuse nor chunked"),
        (BuildOptions(), config(kv="INT8"), "use_paged_context_fmha", False, "int8 KV cache"),
        (BuildOptions(), config("FP8"), "use_fp8_context_fmha", False, "needs an fp8 KV cache"),
        (plugins(use_fp8_context_fmha=False), config("FP8", "FP8"), "use_fp8_context_fmha", True, "needs it"),
        (BuildOptions(), config("FP8", "FP8"), "use_paged_context_fmha", True, ""),
        (BuildOptions(), config(tp=1), "nccl_plugin", None, ""),
        (BuildOptions(), config(), "paged_state", False, ""),
        (BuildOptions(kv_cache_type="continuous"), config(), "paged_kv_cache", False, "kv_cache_type paged"),
    ],
)
def test_what_build_changes_by_itself(
    options: BuildOptions, pretrained: dict[str, Any], field: str, value: Any, said: str
) -> None:
    plan = plan_build(options, pretrained, 90)
    assert {**plan.effective, **plan.effective["plugin_config"]}[field] == value
    assert any(said in warning for warning in plan.warnings) or not said, plan.warnings


def test_nvfp4_gets_its_gemm_plugin_unless_it_was_disabled_by_name() -> None:
    assert plan_build(BuildOptions(), config("NVFP4"), 100).effective["plugin_config"]["gemm_plugin"] == "nvfp4"
    off = plan_build(plugins(gemm_plugin="disable"), config("NVFP4"), 100)
    assert off.effective["plugin_config"]["gemm_plugin"] is None


def test_nothing_is_said_of_an_unknown_gpu() -> None:
    plan_build(plugins(low_latency_gemm_plugin="fp8"), config("W4A16", "INT8"), None)


def draw(generator: random.Random) -> tuple[BuildOptions, dict[str, Any], int]:
    """Options, checkpoint and GPU by chance: mostly usual values, now and then a strange one."""
    pick, often = generator.choice, lambda usual, *others: generator.choice([usual] * 4 + list(others))
    switches = {
        name: generator.random() < (0.15 if usual is False else 0.85)
        for name, usual in ((f.name, f.default) for f in fields(PluginOptions))
        if isinstance(usual, bool) and name not in ("streamingllm", "pp_reduce_scatter", "dora_plugin")
    }
    plugin = PluginOptions(
        **switches,  # type: ignore[arg-type]
        gemm_plugin=pick((None, "auto", "disable", "fp8")),
        gemm_swiglu_plugin=often("disable", "fp8"),
        low_latency_gemm_plugin=often("disable", "fp8"),
        tokens_per_block=pick((16, 32, 64, 128)),
        pp_reduce_scatter=often(False, True),
    )
    options = BuildOptions(
        max_batch_size=pick((None, 1, 8, 600)),
        max_seq_len=pick((None, 64, 2048, 9000)),
        max_num_tokens=pick((None, 16, 1024, 20000)),
        max_beam_width=often(1, 4),
        opt_num_tokens=often(None, 256),
        kv_cache_type=often("paged", "continuous"),
        gather_context_logits=often(False, True),
        speculative_decoding_mode=often("none", "draft_tokens_external", "lookahead_decoding", "medusa", "eagle"),
        max_draft_len=often(0, 5, 300),
        fast_build=often(False, True),
        plugin_config=plugin,
    )
    pretrained = config(
        often(
            None, "FP8", "W4A8_AWQ", "NVFP4", "W8A16", "W4A16_AWQ", "W8A8_SQ_PER_CHANNEL", "FP8_PER_CHANNEL_PER_TOKEN"
        ),
        often(None, "FP8", "INT8"),
        pick((1, 2, 4)),
        architecture=pick(("LlamaForCausalLM", "MixtralForCausalLM", "GPTForCausalLM", "Gemma2ForCausalLM")),
        num_eagle_layers=4,
    )
    return options, pretrained, pick((80, 86, 89, 90, 100, 103))


def test_what_is_not_refused_is_saved_as_predicted(stand_in: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Our rules and the stand-in's, written apart: it refuses nothing that we accept, and saves what we predict."""
    import tensorrt_llm._utils
    from tensorrt_llm.builder import BuildConfig, build
    from tensorrt_llm.models import Model, PretrainedConfig
    from tensorrt_llm.plugin import PluginConfig

    generator, path, accepted = random.Random(5), tmp_path / "build_config.json", 0
    for _ in range(400):
        options, pretrained, sm = draw(generator)
        stand_in.setattr(tensorrt_llm._utils, "get_sm_version", lambda sm=sm: sm)
        try:
            plan = plan_build(options, pretrained, sm)
        except PlanError:
            continue
        accepted += 1
        path.write_text(json.dumps(with_timing_cache(plan.request, None, str(tmp_path / "model.cache"))))
        base = PluginConfig(gemm_plugin=options.plugin_config.gemm_plugin)
        asked = BuildConfig.from_json_file(str(path), plugin_config=base)
        asked.plugin_config.validate()
        saved = build(Model(PretrainedConfig(pretrained), None), asked).build_config.to_dict()
        saved["kv_cache_type"] = saved["kv_cache_type"].lower()
        for name, value in plan.effective["plugin_config"].items():
            assert saved["plugin_config"][name] == value, (name, options, pretrained)
        for name, value in plan.effective.items():
            assert name == "plugin_config" or saved[name] == value, (name, options, pretrained)
    assert accepted > 60


def test_what_the_stand_in_refuses_is_refused_before(stand_in: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other way: each of its errors is among our problems, in a sentence of our own."""
    import tensorrt_llm._utils
    from tensorrt_llm.builder import BuildConfig, build
    from tensorrt_llm.models import Model, PretrainedConfig

    generator, path, seen = random.Random(11), tmp_path / "build_config.json", set()
    for _ in range(250):
        options, pretrained, sm = draw(generator)
        stand_in.setattr(tensorrt_llm._utils, "get_sm_version", lambda sm=sm: sm)
        chosen = replace(options, speculative_decoding_mode="none", max_draft_len=0).resolved("tensorrt")
        made = with_timing_cache(request(chosen, pretrained), None, str(tmp_path / "model.cache"))
        path.write_text(json.dumps(made))
        try:
            asked = BuildConfig.from_json_file(str(path))
            asked.plugin_config.validate()
            build(Model(PretrainedConfig(pretrained), None), asked)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            seen.add(re.sub(r"\W.*", "", str(error)))
            with pytest.raises(PlanError):
                plan_build(chosen, pretrained, sm)
    assert {"INT8", "SmoothQuant", "Per", "GemmSwiGLU", "low_latency_gemm_plugin"} <= seen


def test_the_cpu_engine_refuses_what_it_does_not_have() -> None:
    with pytest.raises(PlanError, match=r"plugin_config.gemm_plugin: the cpu engine does not have it"):
        with_settings(BuildOptions(), ["gemm_plugin=auto"]).require("cpu")
    BuildOptions(4, 64, 16).require("cpu")
    assert BuildOptions(4).recorded("cpu") == {"max_batch_size": 4, "max_seq_len": None, "max_num_tokens": 128}
