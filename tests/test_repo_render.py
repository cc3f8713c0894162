"""Repositories as text: upstream's tensors, no variable left open, strings that stay strings, and the launch lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import triton_contract as contract
from trtbuild.errors import EngineError, PlanError
from trtbuild.repo.info import read_engine_facts
from trtbuild.repo.options import ROLES, RepositoryOptions, check_options, policy_text, template_values
from trtbuild.repo.parameters import PARAMETERS
from trtbuild.repo.render import pbtxt_string, render_configs
from trtbuild.repo.write import write_repository

STREAMS = ("STREAM_ID", "IS_FINAL")
PLACES = {"BATCH_INDEX": "batch_index", "SEQUENCE_INDEX": "sequence_index"}


def engine(folder: Path, *, target: str = "cpu", tp: int = 1, **build: Any) -> Path:
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "version": "1.2.1",
        "pretrained_config": {"vocab_size": 512, "logits_dtype": "float32", "mapping": {"tp_size": tp, "pp_size": 1}},
        "build_config": {"max_batch_size": 8, "max_seq_len": 128, "max_input_len": 127, "max_beam_width": 1, **build},
    }
    if target == "cpu":
        config["trtbuild"] = {"target": "cpu"}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(tp):
        (folder / f"rank{rank}.engine").write_bytes(b"x")
    return folder


def tokenizer(folder: Path, size: int = 300) -> Path:
    folder.mkdir()
    vocab = {f"t{i}": i for i in range(size)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"not copied")
    return folder


def parsed(texts: dict[str, str]) -> dict[str, Any]:
    text_format = pytest.importorskip("google.protobuf.text_format")
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    return {model: text_format.Parse(text, model_config_pb2.ModelConfig()) for model, text in texts.items()}


def configs(folder: Path, target: str, **options: Any) -> dict[str, Any]:
    facts = read_engine_facts(engine(folder / target, target=target))
    return parsed(render_configs(template_values(RepositoryOptions(**options), facts, "preprocessing/tokenizer")))


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_both_targets_parse_and_fit_together(tmp_path: Path, target: str) -> None:
    models = configs(tmp_path, target)
    llm = models["tensorrt_llm"]
    for role, model in models.items():
        streams = contract.tensors_of(contract.STREAMS) if (role, target) == ("tensorrt_llm", "cpu") else {}
        assert contract.tensors(model.input) == contract.INPUTS[role], role
        assert contract.tensors(model.output) == {**contract.OUTPUTS[role], **streams}, role
        assert model.version_policy.latest.num_versions == 1
    assert llm.backend == {"cpu": "python", "tensorrt": "tensorrtllm"}[target]
    assert llm.model_transaction_policy.decoupled
    assert llm.parameters["gpt_model_type"].string_value == "inflight_fused_batching"
    assert {"tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path"} <= set(llm.parameters)
    assert set(llm.parameters) <= set(PARAMETERS)
    assert models["postprocessing"].instance_group[0].count == 1
    ensemble = models["ensemble"]
    outer = {i.name for i in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        inner, outer_names = (
            {k: v for k, v in side.items() if k not in STREAMS} for side in (step.input_map, step.output_map)
        )
        if (step.model_name, target) == ("postprocessing", "tensorrt"):  # which sequence a response belongs to
            assert PLACES.items() <= inner.items()
            inner = {k: v for k, v in inner.items() if k not in PLACES}
        assert (inner, outer_names) == tuple(map(contract.mapped, contract.MAPS[step.model_name]))
        assert set(step.input_map) <= {i.name for i in model.input}
        assert set(step.output_map) <= {o.name for o in model.output}
        assert set(step.input_map.values()) <= outer, f"{step.model_name} reads what nobody writes"
        outer |= set(step.output_map.values())
    assert {o.name for o in ensemble.output} <= outer


def test_the_other_settings_of_upstreams_models(tmp_path: Path) -> None:
    models = configs(tmp_path, "tensorrt", max_queue_size=7, max_queue_delay_microseconds=9, preprocessing_instances=3)
    llm = models["tensorrt_llm"]
    assert list(llm.dynamic_batching.preferred_batch_size) == [8]
    assert llm.dynamic_batching.max_queue_delay_microseconds == 9
    assert llm.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert {role for role, model in models.items() if model.HasField("dynamic_batching")} == {
        "preprocessing",
        "tensorrt_llm",
        "postprocessing",
    }
    assert {role for role, model in models.items() if model.model_transaction_policy.decoupled} == {
        "tensorrt_llm",
        "tensorrt_llm_bls",
    }
    assert not any(model.HasField("sequence_batching") for model in models.values())
    counts = {role: [(g.count, g.kind) for g in model.instance_group] for role, model in models.items()}
    assert counts == {
        "ensemble": [],
        "preprocessing": [(3, 2)],
        "tensorrt_llm": [(1, 2)],
        "postprocessing": [(1, 2)],
        "tensorrt_llm_bls": [(1, 2)],
    }
    for role, keys in contract.OTHER_PARAMETERS.items():
        assert keys <= set(models[role].parameters)
    flags = [m.model_transaction_policy.decoupled for m in configs(tmp_path / "n", "cpu", decoupled=False).values()]
    assert flags == [False] * 5


def test_instances_and_types_of_the_engine(tmp_path: Path) -> None:
    def count(**options: Any) -> int:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return int(configs(folder, "tensorrt", **options)["tensorrt_llm"].instance_group[0].count)

    assert count() == 1
    assert count(parameters={"gpu_device_ids": "0;1;2"}) == 3
    assert count(parameters={"participant_ids": "1;2"}) == 2
    assert count(instances=4, max_tokens_in_paged_kv_cache=999) == 4
    models = configs(tmp_path / "t", "tensorrt", prompt_table_type="BF16", encoder_features_type="FP32")
    types = {
        (role, tensor.name): tensor.data_type
        for role, model in models.items()
        for tensor in model.input
        if tensor.name in ("prompt_embedding_table", "encoder_input_features")
    }
    table = ("ensemble", "tensorrt_llm", "tensorrt_llm_bls")
    assert types == {**{(role, "prompt_embedding_table"): 14 for role in table},  # TYPE_BF16, TYPE_FP32 in the .proto
                     ("tensorrt_llm", "encoder_input_features"): 11}  # fmt: skip
    with pytest.raises(PlanError, match="type INT8 is none of FP16, BF16, FP32"):
        write_repository(
            engine(tmp_path / "e"),
            tmp_path / "r",
            tokenizer(tmp_path / "tok"),
            RepositoryOptions(prompt_table_type="INT8"),
        )


def test_every_parameter_is_there_or_has_no_value(tmp_path: Path) -> None:
    """No key is left to a default that the file does not say."""
    upstream = {key: p for key, p in PARAMETERS.items() if not p.cpu_only}
    assert {key: p.default if p.is_default_written else None for key, p in upstream.items()} == contract.PARAMETERS
    written = {key: p.string_value for key, p in configs(tmp_path, "tensorrt")["tensorrt_llm"].parameters.items()}
    silent = {key for key, value in contract.PARAMETERS.items() if value is None} - {
        "gpt_model_type",
        "gpt_model_path",
        "tokenizer_dir",
        "guided_decoding_backend",
        "xgrammar_tokenizer_info_path",
    }
    lora = {key for key in PARAMETERS if key.startswith("lora_")}  # an engine without LoRA gets none of them
    assert set(written) == set(upstream) - silent - lora
    decided = {"enable_chunked_context", "enable_kv_cache_reuse", "max_beam_width"}
    same = {key: value for key, value in contract.PARAMETERS.items() if value is not None and key not in decided | lora}
    assert {key: written[key] for key in same} == same
    some = configs(tmp_path / "t", "tensorrt", max_tokens_in_paged_kv_cache=999, parameters={"lora_prefetch_dir": "/l"})
    written = {key: p.string_value for key, p in some["tensorrt_llm"].parameters.items()}
    assert "kv_cache_free_gpu_mem_fraction" not in written, "both would mean the smaller"
    assert written["lora_cache_max_adapter_size"] == "64"


def test_names_and_versions(tmp_path: Path) -> None:
    models = configs(tmp_path, "cpu", name="llama-7b", version_policy="1,3", bls_instances=2, accumulate_tokens=True)
    assert {model.name for model in models.values()} == {f"llama-7b_{role}" for role in ROLES}
    steps = [step.model_name for step in models["ensemble"].ensemble_scheduling.step]
    assert steps == ["llama-7b_preprocessing", "llama-7b_tensorrt_llm", "llama-7b_postprocessing"]
    assert list(models["tensorrt_llm"].version_policy.specific.versions) == [1, 3]
    bls = models["tensorrt_llm_bls"]
    assert bls.parameters["tensorrt_llm_model_name"].string_value == "llama-7b_tensorrt_llm"
    assert bls.parameters["accumulate_tokens"].string_value == "true"
    assert bls.instance_group[0].count == 2
    assert "tensorrt_llm_bls" not in configs(tmp_path / "n", "cpu", bls=False)
    for wrong in ("", "newest", "0", "1,", "latest:0"):
        with pytest.raises(PlanError, match="version policy"):
            policy_text(wrong)


def test_kinds_agree_along_the_ensemble(tmp_path: Path) -> None:
    models = configs(tmp_path, "cpu")
    kinds = {i.name: i.data_type for i in models["ensemble"].input}
    for step in models["ensemble"].ensemble_scheduling.step:
        model = models[step.model_name]
        inputs, outputs = ({t.name: t.data_type for t in side} for side in (model.input, model.output))
        for inner, outer in step.input_map.items():
            assert inputs[inner] == kinds[outer], f"{step.model_name}.{inner}"
        kinds |= {outer: outputs[inner] for inner, outer in step.output_map.items()}


def test_optional_settings_and_strings_survive(tmp_path: Path) -> None:
    nasty = 'a"b\\c\n${x} {{ y }} é'
    models = configs(tmp_path, "cpu", max_tokens_in_paged_kv_cache=4096, parameters={"lora_prefetch_dir": nasty})
    parameters = models["tensorrt_llm"].parameters
    assert parameters["max_tokens_in_paged_kv_cache"].string_value == "4096"
    assert parameters["lora_prefetch_dir"].string_value == nasty
    assert "decoding_mode" not in parameters
    assert pbtxt_string("\x01") == '"\\001"'


def test_a_variable_without_value_is_an_error(tmp_path: Path) -> None:
    values = template_values(RepositoryOptions(), read_engine_facts(engine(tmp_path / "e")), "t")
    del values["triton_max_batch_size"]
    with pytest.raises(EngineError, match="triton_max_batch_size"):
        render_configs(values)


def test_without_tritonclient_nothing_is_written_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)  # as on a plain install
    with pytest.raises(EngineError, match="needs tritonclient") as caught:
        write_repository(engine(tmp_path / "e"), tmp_path / "r", tokenizer(tmp_path / "tok"), RepositoryOptions())
    assert "trtbuild[client]" in caught.value.hint
    assert not (tmp_path / "r").exists()


def test_all_contradictions_at_once(tmp_path: Path) -> None:
    facts = read_engine_facts(engine(tmp_path / "e"))
    options = RepositoryOptions(
        triton_max_batch_size=9,
        max_tokens_in_paged_kv_cache=64,
        batch_scheduler_policy="fast",
        kv_cache_free_gpu_mem_fraction=1.5,
        name="a/b",
        version_policy="newest",
        preprocessing_instances=0,
        bls=False,
        accumulate_tokens=True,
        parameters={"max_queue": "1", "gpt_model_path": "/x"},
    )
    with pytest.raises(PlanError) as caught:
        check_options(options, facts, tokenizer_vocab=513)
    assert len(caught.value.problems) == 11


def test_chunked_context_and_reuse_follow_the_engine(tmp_path: Path) -> None:
    for name, plugin, expected in (("a", True, "true"), ("b", False, "false")):
        facts = read_engine_facts(
            engine(tmp_path / name, target="tensorrt", plugin_config={"use_paged_context_fmha": plugin})
        )
        parameters = template_values(RepositoryOptions(), facts, "t")["parameters"]
        assert parameters["enable_chunked_context"] == expected
        assert parameters["enable_kv_cache_reuse"] == expected


def test_a_repository_is_self_contained_and_reproducible(tmp_path: Path) -> None:
    source, built = tokenizer(tmp_path / "tok"), engine(tmp_path / "e")
    write_repository(built, tmp_path / "one", source, RepositoryOptions())
    write_repository(built, tmp_path / "two", source, RepositoryOptions())
    one, two = (
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("one", "two")
    )
    assert one == two
    assert {path.split("/")[0] for path in one} == {*ROLES, "trtbuild.json"}
    assert "preprocessing/tokenizer/tokenizer.json" in one
    assert not any(path.endswith("safetensors") for path in one)
    assert "tensorrt_llm/1/model.py" in one


def test_the_tensorrt_target_has_no_model_of_ours(tmp_path: Path) -> None:
    built = engine(tmp_path / "e", target="tensorrt", tp=2)
    write_repository(built, tmp_path / "r", tokenizer(tmp_path / "tok"), RepositoryOptions())
    assert [p.name for p in (tmp_path / "r" / "tensorrt_llm" / "1").iterdir()] == [".keep"]
    text = (tmp_path / "r" / "postprocessing" / "config.pbtxt").read_text()
    assert str(tmp_path / "r" / "preprocessing" / "tokenizer") in text


@pytest.mark.parametrize(
    ("broken", "words"), [("config", "no config.json"), ("rank", "lacks rank1.engine"), ("hf", "is not an engine")]
)
def test_what_is_not_an_engine(tmp_path: Path, broken: str, words: str) -> None:
    folder = engine(tmp_path / "e", tp=2)
    if broken == "config":
        (folder / "config.json").unlink()
    elif broken == "rank":
        (folder / "rank1.engine").unlink()
    else:
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(EngineError, match=words) as caught:
        read_engine_facts(folder)
    assert ("--target llmapi" in caught.value.hint) == (broken == "hf")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        write_repository(engine(tmp_path / "e"), tmp_path / "r", tmp_path / "none", RepositoryOptions())
    assert not (tmp_path / "r").exists()


def test_the_client_needs_no_torch() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'tritonclient'}"
    code = f"import sys, trtbuild.client, trtbuild.text.chat; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
