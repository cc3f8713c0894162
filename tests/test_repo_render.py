"""Repositories as text: upstream's tensors, no variable left open, strings that stay strings, and the launch lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trtbuild.errors import EngineError, PlanError
from trtbuild.repo.info import read_engine_facts
from trtbuild.repo.options import RepositoryOptions, check_options, template_values
from trtbuild.repo.parameters import PARAMETERS
from trtbuild.repo.render import MODELS, pbtxt_string, render_configs
from trtbuild.repo.write import write_repository


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
    assert llm.backend == {"cpu": "python", "tensorrt": "tensorrtllm"}[target]
    assert llm.model_transaction_policy.decoupled
    assert len(llm.input) == 62
    assert len(llm.output) == 21 + (2 if target == "cpu" else 0)
    assert {i.name for i in llm.input if not i.optional} == {"input_lengths", "request_output_len"}
    assert llm.parameters["gpt_model_type"].string_value == "inflight_fused_batching"
    assert {"tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path"} <= set(llm.parameters)
    assert set(llm.parameters) <= set(PARAMETERS)
    assert len(models["preprocessing"].input) == 14
    assert len(models["preprocessing"].output) == 20
    assert models["postprocessing"].instance_group[0].count == 1
    ensemble = models["ensemble"]
    assert (len(ensemble.input), len(ensemble.output)) == (36, 19)
    outer = {i.name for i in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        assert set(step.input_map) <= {i.name for i in model.input}
        assert set(step.output_map) <= {o.name for o in model.output}
        assert set(step.input_map.values()) <= outer, f"{step.model_name} reads what nobody writes"
        outer |= set(step.output_map.values())
    assert {o.name for o in ensemble.output} <= outer


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


def test_all_contradictions_at_once(tmp_path: Path) -> None:
    facts = read_engine_facts(engine(tmp_path / "e"))
    options = RepositoryOptions(
        triton_max_batch_size=9,
        max_tokens_in_paged_kv_cache=64,
        batch_scheduler_policy="fast",
        kv_cache_free_gpu_mem_fraction=1.5,
        parameters={"max_queue": "1", "gpt_model_path": "/x"},
    )
    with pytest.raises(PlanError) as caught:
        check_options(options, facts, tokenizer_vocab=513)
    assert len(caught.value.problems) == 7


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
    assert {path.split("/")[0] for path in one} == {*MODELS, "trtbuild.json"}
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
    with pytest.raises(EngineError, match=words):
        read_engine_facts(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        write_repository(engine(tmp_path / "e"), tmp_path / "r", tmp_path / "none", RepositoryOptions())
    assert not (tmp_path / "r").exists()


def test_the_client_needs_no_torch() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'tritonclient'}"
    code = f"import sys, trtbuild.client, trtbuild.text.chat; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
