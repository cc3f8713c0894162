"""Re-sharding: the bytes of a direct conversion, whatever the layout before; round trips; faults refused first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.by_hand import MODELS as LLAMA_LIKE
from tests.by_hand import make as make_llama_like
from tests.checkpoints import edit_config, edit_rank, make
from tests.encoders import CASES as ENCODERS
from tests.encoders import make_model as make_encoder
from tests.test_families_b import MODELS as GPT_LIKE
from tests.test_families_b import make as make_gpt_like
from tests.tiny import load_rank, make_llama, trtbuild
from trtbuild import pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.errors import CheckpointError, OutputError, PlanError
from trtbuild.lint.check import check
from trtbuild.manifest import sha256_file
from trtbuild.spec import ConvertOptions

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "2 kv heads": {"num_key_value_heads": 2, "num_hidden_layers": 5},
    "tied, vocabulary 509, wide heads": {"tie_word_embeddings": True, "vocab_size": 509, "head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 3},
}
PARALLEL = {"use_parallel_embedding": True}
# Each is re-sharded to the next, and the last to the first.
LAYOUTS = [
    ConvertOptions(4, 1),
    ConvertOptions(1, 1),
    ConvertOptions(2, 2, **PARALLEL),
    ConvertOptions(1, 3, use_embedding_sharing=True),
    ConvertOptions(4, 2, embedding_sharding_dim=1, **PARALLEL),
    ConvertOptions(8, 1, **PARALLEL),
    ConvertOptions(2, 1, embedding_sharding_dim=1, **PARALLEL),
    ConvertOptions(4, 1, moe_tp_size=2, moe_ep_size=2),
    ConvertOptions(2, 1, moe_ep_size=2),
    ConvertOptions(1, 2),
]


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of everything but the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in DOCUMENTS
    }


# What differs between families are the rules of their tensors, not the chain of layouts.
FEW = [LAYOUTS[0], LAYOUTS[1], LAYOUTS[2], LAYOUTS[3], LAYOUTS[7], LAYOUTS[8]]


def direct(source: Path, out: Path, layouts: Sequence[ConvertOptions] = LAYOUTS) -> list[tuple[ConvertOptions, Path]]:
    """Direct conversions to all of these layouts that the model can have."""
    made = []
    for number, options in enumerate(layouts):
        try:
            made.append((options, pipeline.make_checkpoint(str(source), out / str(number), options)))
        except PlanError:
            continue
        assert not [found for found in check(made[-1][1]).findings if found.severity != "info"], options
    return made


def reshard_all(made: list[tuple[ConvertOptions, Path]], out: Path) -> None:
    assert len(made) > 1
    for number, ((_, old), (options, new)) in enumerate(pairwise([*made, made[0]])):
        again = pipeline.make_checkpoint(str(old), out / str(number), options)
        assert files(again) == files(new), (old.name, options)


@pytest.mark.parametrize("name", list(MODELS))
def test_resharding_equals_converting(name: str, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", **MODELS[name])
    reshard_all(direct(source, tmp_path / "direct"), tmp_path / "again")


@pytest.mark.parametrize("name", [*LLAMA_LIKE, *GPT_LIKE, *ENCODERS])
def test_every_family(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if name in LLAMA_LIKE:
        source = make_llama_like(name, source)
    elif name in ENCODERS:
        make_encoder(ENCODERS[name], source)
    else:
        _, architecture, fields = GPT_LIKE[name]
        make_gpt_like(source, architecture, fields)
    made = direct(source, tmp_path / "direct", FEW)
    reshard_all(made if len(made) > 1 else made * 2, tmp_path / "again")


def test_round_trip_over_many_layouts(tmp_path: Path) -> None:
    """4 x 1 with 2 kv heads -> 1 x 1 -> 2 x 2 -> 1 x 3 -> 4 x 1: the first bytes again."""
    source = make_llama(tmp_path / "source", num_key_value_heads=2, num_hidden_layers=5, vocab_size=511)
    first = now = pipeline.make_checkpoint(str(source), tmp_path / "first", ConvertOptions(4, 1, "bfloat16"))
    for number, (tp, pp) in enumerate([(1, 1), (2, 2), (1, 3), (4, 1)]):
        now = pipeline.make_checkpoint(str(now), tmp_path / str(number), ConvertOptions(tp, pp))
        assert not check(now).findings
    assert files(now) == files(first)


def test_upstreams_ranks_become_upstreams_whole(golden: Path, tmp_path: Path) -> None:
    """tp 2 x pp 2 as TensorRT-LLM wrote it -> tp 1, tensor by tensor what TensorRT-LLM wrote; buffers are dropped."""
    made = pipeline.make_checkpoint(
        str(golden / "llama-tp2-pp2-float16" / "trtllm"), tmp_path / "out", ConvertOptions()
    )
    whole = golden / "llama-tp1-pp1-float16" / "trtllm"
    ours, theirs = (load_rank(folder / "rank0.safetensors") for folder in (made, whole))
    assert set(theirs) - set(ours) == {"embed_positions", "rotary_inv_freq", "embed_positions_for_gpt_attention"}
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name
    parent = json.loads((made / "trtbuild.json").read_text())["source"]["parent"]
    assert parent["dropped"] == sorted(set(theirs) - set(ours))
    assert json.loads((made / "config.json").read_text()) == json.loads((whole / "config.json").read_text())


def test_an_absent_tied_lm_head_is_written(golden: Path, tmp_path: Path) -> None:
    given = golden / "llama-tied-tp1-pp1-float16-share" / "trtllm"
    made = pipeline.make_checkpoint(str(given), tmp_path / "out", ConvertOptions(2, 2))
    table = load_rank(given / "rank0.safetensors")["transformer.vocab_embedding.weight"]
    halves = [load_rank(made / f"rank{rank}.safetensors")["lm_head.weight"] for rank in (2, 3)]
    assert torch.equal(torch.cat(halves), table)
    assert not [finding for finding in check(made).findings if finding.severity != "info"]


def test_int8_as_plain_weights(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    options = ConvertOptions(1, 1, "float16", "int8", "tensorrt")
    whole = pipeline.make_checkpoint(str(source), tmp_path / "whole", options)
    halves = replace(options, tp_size=2)
    again = pipeline.make_checkpoint(str(whole), tmp_path / "again", halves)
    assert files(again) == files(pipeline.make_checkpoint(str(source), tmp_path / "direct", halves))
    assert json.loads((again / "trtbuild.json").read_text())["options"]["quant"] == "int8"
    with pytest.raises(PlanError, match=r"W8A16 needs .* multiples of 64 x tp 8"):
        pipeline.make_checkpoint(str(whole), tmp_path / "no", replace(options, tp_size=8))


def test_weights_laid_out_for_a_gpu_are_refused(golden: Path, tmp_path: Path) -> None:
    given = golden / "llama-h128-tp1-pp1-float16-int8" / "trtllm"
    with pytest.raises(CheckpointError, match="W8A16 weights in a form that cannot be re-sharded") as caught:
        pipeline.make_checkpoint(str(given), tmp_path / "out", ConvertOptions(2, 1))
    assert "source model" in caught.value.hint
    with pytest.raises(CheckpointError, match="W4A16_GPTQ weights in a form that cannot be re-sharded"):
        pipeline.make_checkpoint(str(make("GPTQ", tmp_path)), tmp_path / "out", ConvertOptions(2, 1))
    assert not (tmp_path / "out").exists()


def test_modelopts_export_goes_to_two_ranks_and_back(golden: Path, tmp_path: Path) -> None:
    """Packed rows of AWQ too: two ranks are sound, and one rank again has every byte of ModelOpt's tensors."""
    for name in ("int4_awq", "int8_sq", "fp8"):
        given = golden.parent / "golden-modelopt" / f"{name}-tp1-calc32" / "trtllm"
        two = pipeline.make_checkpoint(str(given), tmp_path / f"{name} two", ConvertOptions(2, 1))
        assert not [finding for finding in check(two).findings if finding.severity == "error"]
        one = pipeline.make_checkpoint(str(two), tmp_path / f"{name} one", ConvertOptions(1, 1))
        ours, theirs = (load_rank(folder / "rank0.safetensors") for folder in (one, given))
        assert set(ours) == set(theirs)
        for tensor, wanted in theirs.items():
            assert torch.equal(ours[tensor].contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8)), (
                tensor
            )


def test_faults_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = make("tp2 pp2", tmp_path)
    edit_config(made, vocab_size=500)
    edit_rank(made, 1, lambda tensors: tensors.pop("transformer.layers.0.mlp.fc.weight"))
    edit_rank(made, 2, lambda tensors: tensors["transformer.ln_f.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError) as caught:
        pipeline.make_checkpoint(str(made), tmp_path / "out", ConvertOptions())
    for text in ("tensor-missing: transformer.layers.0.mlp.fc.weight (rank 1)", "tensor-shape: lm_head.weight (rank 3)",
                 "tensor-nonfinite: transformer.ln_f.weight (rank 2)"):  # fmt: skip
        assert text in caught.value.message
    assert "trtbuild check" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("out", ".out"))] == []


def test_layouts_and_options_that_do_not_fit(tmp_path: Path) -> None:
    made = make("tp2 pp2", tmp_path)
    with pytest.raises(PlanError, match="tp 3 does not divide") as caught:
        pipeline.make_checkpoint(str(made), tmp_path / "out", ConvertOptions(3, 9, "bfloat16", "int8"))
    assert "pp 9 is more than the 4 layers" in str(caught.value)
    assert "the checkpoint is float16; --dtype bfloat16 needs the source model" in str(caught.value)
    assert "the checkpoint's quant_algo is None; --quant needs the source model" in str(caught.value)
    with pytest.raises(OutputError, match="exists and is not empty"):
        pipeline.make_checkpoint(str(made), made, ConvertOptions())


def test_the_manifest_names_the_parent(tmp_path: Path) -> None:
    made = make("tp2 pp2", tmp_path)
    again = pipeline.make_checkpoint(str(made), tmp_path / "again", ConvertOptions(1, 1))
    parent, child = (json.loads((folder / "trtbuild.json").read_text()) for folder in (made, again))
    assert child["source"].pop("parent") == {
        "name": "checkpoint",
        "layout": {"tp_size": 2, "pp_size": 2},
        "options": parent["options"],
        "dropped": [],
        "config_sha256": {"config.json": sha256_file(made / "config.json")},
        "files": parent["files"],
    }
    assert child["source"] == parent["source"]
    assert child["files"] == {name: sha256_file(again / name) for name in child["files"]}
    assert child["files"].keys() - set(DOCUMENTS) == files(again).keys()
    assert child["options"] == {**parent["options"], "tp_size": 1, "pp_size": 1}


def test_command_line(tmp_path: Path) -> None:
    made = make("tp2 pp2", tmp_path)
    done = trtbuild("checkpoint", made, "-o", tmp_path / "out", "--tp", 4)
    assert done.returncode == 0, done.stderr
    assert "checkpoint of 4 ranks" in done.stderr
    (made / "rank0.safetensors").unlink()
    done = trtbuild("checkpoint", made, "-o", tmp_path / "out2")
    assert done.returncode == 3
    assert "rank-file-missing" in done.stderr
    shutil.rmtree(made)
