"""The plan as a value: coverage, shapes, and every problem at once."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plans import config, headers, plan_of
from tests.tiny import ROOT, trtbuild
from trtbuild.checkpoint.config import read_spec
from trtbuild.errors import PlanError, UnsupportedModel
from trtbuild.spec import ConvertOptions


@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 5),
    kv=st.sampled_from([1, 2, 4, 8]),
    vocab=st.integers(64, 97),
    tied=st.booleans(),
    biases=st.booleans(),
)
def test_every_row_of_the_source_is_planned(tp: int, pp: int, kv: int, vocab: int, tied: bool, biases: bool) -> None:
    plan = plan_of(
        ConvertOptions(tp, pp),
        num_hidden_layers=5,
        num_key_value_heads=kv,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        attention_bias=biases,
        mlp_bias=biases,
    )
    assert not plan.problems
    assert [rank.rank for rank in plan.ranks] == list(range(tp * pp))
    document = config(num_hidden_layers=5, num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=tied)
    index = headers({**document, "attention_bias": biases, "mlp_bias": biases})
    seen: dict[str, set[int]] = {name: set() for name in index}
    for rank in plan.ranks:
        names = [job.name for job in rank.jobs]
        assert len(set(names)) == len(names)
        for job in rank.jobs:
            for piece in job.pieces:
                for start, stop in piece.rows:
                    seen[piece.source] |= set(range(start, stop))
    assert all(len(rows) == index[name].shape[0] for name, rows in seen.items())
    heads, head = 8, 8
    first = plan.ranks[0].jobs
    qkv = next(job for job in first if job.name.endswith("0.attention.qkv.weight"))
    assert qkv.shape == ((heads // tp + 2 * -(-kv // tp)) * head, 64)
    assert next(j for j in plan.ranks[-1].jobs if j.name == "lm_head.weight").shape == (-(-vocab // tp), 64)


def test_all_problems_come_together_with_the_values_that_work() -> None:
    index = headers(config(num_attention_heads=9, num_key_value_heads=3, hidden_size=576, intermediate_size=1536))
    del index["model.layers.2.mlp.up_proj.weight"]
    index["extra.weight"] = index["model.norm.weight"]
    wrong = index["model.layers.0.mlp.down_proj.weight"]
    index[wrong.name] = replace(wrong, shape=(576, 1535))
    plan = plan_of(
        ConvertOptions(tp_size=2, pp_size=5),
        index,
        num_attention_heads=9,
        num_key_value_heads=3,
        hidden_size=576,
        intermediate_size=1536,
    )
    text = "\n".join(plan.problems)
    assert "tp 2 does not divide 9 attention heads; tp 1 or 3 works" in text
    assert "tp 2 does not divide 3 key/value heads" in text
    assert "pp 5 is more than the 4 layers" in text
    assert "missing tensors: model.layers.2.mlp.up_proj.weight" in text
    assert "unexpected tensors, which llama has no place for: extra.weight" in text
    assert "model.layers.0.mlp.down_proj.weight has shape [576, 1535], but the config says [576, 1536]" in text
    assert plan.ranks == ()
    with pytest.raises(PlanError) as caught:
        plan.require()
    assert len(caught.value.problems) == 6


def test_few_kv_heads_are_repeated_in_order() -> None:
    plan = plan_of(ConvertOptions(tp_size=4), num_key_value_heads=2)
    starts = []
    for rank in plan.ranks:
        qkv = next(job for job in rank.jobs if job.name.endswith("layers.0.attention.qkv.weight"))
        starts.append([window for piece in qkv.pieces[1:] for window in piece.rows])
    assert starts == [[(0, 8)] * 2, [(0, 8)] * 2, [(8, 16)] * 2, [(8, 16)] * 2]


def test_int8_multiples_warn_on_cpu_and_refuse_for_tensorrt() -> None:
    cpu = plan_of(ConvertOptions(tp_size=2, quant="int8", dtype="float16"))
    assert not cpu.problems
    assert any("attention.dense [64, 64] to be multiples of 64 x tp = 128" in warning for warning in cpu.warnings)
    gpu = plan_of(ConvertOptions(tp_size=2, quant="int8", dtype="float16", target="tensorrt"))
    assert gpu.problems == cpu.warnings
    assert not plan_of(ConvertOptions(tp_size=1, quant="int8", dtype="float16", target="tensorrt")).problems


@pytest.mark.parametrize(("dim", "shape"), [(0, (256, 64)), (1, (512, 32))], ids=["vocabulary", "hidden"])
def test_parallel_embedding(dim: int, shape: tuple[int, int]) -> None:
    plan = plan_of(ConvertOptions(tp_size=2, use_parallel_embedding=True, embedding_sharding_dim=dim))
    assert plan.ranks[1].jobs[0].shape == shape


def test_rope_of_old_and_new_transformers() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    _, old = read_spec(config(rope_theta=5e5, rope_scaling=scaling))
    _, new = read_spec(config(rope_theta=None, rope_parameters={**scaling, "rope_theta": 5e5}))
    assert old.config == new.config
    assert (old.config["rotary_base"], old.config["rotary_scaling"]) == (5e5, scaling)
    _, plain = read_spec(config(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 1e5}))
    assert (plain.config["rotary_base"], plain.config["rotary_scaling"]) == (1e5, None)


def test_config_values_that_change_the_meaning_are_refused_together() -> None:
    bad = config(
        hidden_act="gelu",
        rope_scaling={"type": "dynamic", "factor": 4.0},
        quantization_config={"quant_method": "gptq"},
        num_key_value_heads=3,
        vocab_size=-1,
    )
    with pytest.raises(UnsupportedModel) as caught:
        read_spec(bad)
    text = caught.value.message
    assert "hidden_act is 'gelu'; supported: silu, swish" in text
    assert "rope_scaling type is 'dynamic'; supported: default, linear, llama3, yarn (TensorRT-LLM" in text
    assert "quantization_config is set (quant_method 'gptq')" in text
    assert "num_attention_heads 8 is not a multiple of num_key_value_heads 3" in text
    assert "vocab_size is -1" in text


def test_harmless_config_keys_are_ignored() -> None:
    read_spec(config(pretraining_tp=4, use_cache=True, some_new_key={"a": 1}, quantization_config=None))


def test_plan_command_needs_no_torch(llama_folder: Path) -> None:
    done = trtbuild("plan", llama_folder, "--tp", 2, "--pp", 2, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert document["problems"] == []
    assert [rank["layers"] for rank in document["ranks"]] == [[0, 2], [0, 2], [2, 4], [2, 4]]
    code = (
        "import sys; from trtbuild.cli.app import app\n"
        f"app(['plan', {str(llama_folder)!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'huggingface_hub', 'tritonclient', 'safetensors'}\n"
        "assert not heavy & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "writes" in run.stdout


@pytest.mark.parametrize("table", ["families", "gpus", "methods", "exit-codes"])
def test_show(table: str) -> None:
    done = trtbuild("show", table, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1
    assert trtbuild("show", table).returncode == 0
