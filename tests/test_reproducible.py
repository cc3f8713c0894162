"""The same inputs give the same bytes, the manifest says so, and the files are what safetensors reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kept import OUTERMOST
from tests.tiny import load_rank, make_llama
from trtbuild import pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.checkpoint.reader import Reader
from trtbuild.checkpoint.source import read_header
from trtbuild.checkpoint.writer import ALIGNMENT
from trtbuild.manifest import read_manifest, sha256_file
from trtbuild.spec import ConvertOptions


def test_same_bytes_twice_and_with_any_number_of_workers(llama_folder: Path, tmp_path: Path) -> None:
    options = ConvertOptions(2, 2, "float16")
    one = pipeline.make_checkpoint(str(llama_folder), tmp_path / "one", options, workers=1)
    two = pipeline.make_checkpoint(str(llama_folder), tmp_path / "two", options, workers=5)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(["config.json", *(f"rank{r}.safetensors" for r in range(4)), *DOCUMENTS])
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_one_file_or_shards_give_the_same_bytes(tmp_path: Path) -> None:
    whole, shards = make_llama(tmp_path / "w" / "m"), make_llama(tmp_path / "s" / "m", shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    made = [pipeline.make_checkpoint(str(m), m.parent / "out", ConvertOptions()) for m in (whole, shards)]
    assert len({sha256_file(folder / "rank0.safetensors") for folder in made}) == 1


def test_each_source_is_read_once(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, list[int]] = {}

    def counted(self: Reader, name: str, rows: tuple[int, int], *, transposed: bool = False) -> Any:
        read.setdefault(name, []).extend(range(*rows))
        return original(self, name, rows, transposed=transposed)

    original = Reader.rows
    monkeypatch.setattr(Reader, "rows", counted)
    pipeline.make_checkpoint(str(llama_folder), tmp_path / "out", ConvertOptions(4, 2))
    tensors = {tensor.name: tensor.shape for tensor in read_header(llama_folder / "model.safetensors")}
    assert {name: sorted(rows) for name, rows in read.items()} == {n: list(range(s[0])) for n, s in tensors.items()}


def test_manifest_matches_the_files(llama_folder: Path, tmp_path: Path) -> None:
    out = pipeline.make_checkpoint(str(llama_folder), tmp_path / "out", ConvertOptions(2, 1))
    manifest = read_manifest(out)
    assert manifest["kind"] == "checkpoint"
    assert manifest["options"]["dtype"] == "float16"
    assert manifest["files"] == {p.name: sha256_file(p) for p in out.iterdir() if p.name not in OUTERMOST}
    source = manifest["source"]
    assert source["config_sha256"] == sha256_file(llama_folder / "config.json")
    assert source["files"] == {"model.safetensors": (llama_folder / "model.safetensors").stat().st_size}
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.mark.parametrize("tied", [False, True])
def test_values_arrive(tied: bool, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "m", tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    out = pipeline.make_checkpoint(str(model), tmp_path / "out", ConvertOptions(1, 2, "float32"))
    source = load_rank(model / "model.safetensors")
    first, last = (load_rank(out / f"rank{rank}.safetensors") for rank in (0, 1))
    embed = source["model.embed_tokens.weight"]
    assert torch.equal(last["lm_head.weight"], embed if tied else source["lm_head.weight"])
    assert "transformer.vocab_embedding.weight" not in last
    assert torch.equal(first["transformer.vocab_embedding.weight"], embed)
    hf, trt = "model.layers.3.", "transformer.layers.1."  # layer 3 is the second of stage 1
    qkv = torch.cat([source[f"{hf}self_attn.{n}_proj.bias"] for n in "qkv"])
    assert torch.equal(last[trt + "attention.qkv.bias"], qkv)
    pairs = {"fc": "gate_proj", "gate": "up_proj", "proj": "down_proj"}
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            assert torch.equal(last[f"{trt}mlp.{ours}.{kind}"], source[f"{hf}mlp.{theirs}.{kind}"])


def test_data_is_aligned_and_in_plan_order(llama_folder: Path, tmp_path: Path) -> None:
    out = pipeline.make_checkpoint(str(llama_folder), tmp_path / "out", ConvertOptions())
    tensors = read_header(out / "rank0.safetensors")
    assert tensors[0].start % ALIGNMENT == 0
    names = [tensor.name for tensor in tensors]
    assert names[0] == "transformer.vocab_embedding.weight"
    assert names[-1] == "lm_head.weight"
    plan = pipeline.make_plan(str(llama_folder), ConvertOptions())
    assert names == [job.name for job in plan.parts[0].ranks[0].jobs]


def test_source_dtypes_and_the_auto_rule(tmp_path: Path) -> None:
    for dtype, expected in {"float32": "F16", "float16": "F16", "bfloat16": "BF16"}.items():
        model = make_llama(tmp_path / dtype, dtype=dtype, num_hidden_layers=1)
        out = pipeline.make_checkpoint(str(model), tmp_path / f"{dtype}-out", ConvertOptions())
        assert {tensor.dtype for tensor in read_header(out / "rank0.safetensors")} == {expected}
