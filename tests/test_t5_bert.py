"""T5, mT5, BERT and RoBERTa: rank files byte for byte, and the numbers that they give under mpirun.

The expected tensors are assembled here by hand from the state dict; the expected numbers are transformers' in float32.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.encoders import CASES, DECODER_IDS, IDS, NEW_TOKENS, TYPES, make_model, reference
from tests.kept import OUTERMOST
from tests.tiny import edit_weights, load_rank, trtbuild
from trtbuild import mpi, pipeline
from trtbuild.checkpoint.config import read_specs
from trtbuild.errors import PlanError, UnsupportedModel
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(case, folder / name) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def numbers(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, np.ndarray]]]:
    """What all layouts of all models give, from a single start of four ranks."""
    folder = tmp_path_factory.mktemp("numbers")
    jobs: list[dict[str, Any]] = []
    inputs = {"input_ids": IDS, "token_type_ids": TYPES, "decoder_ids": DECODER_IDS, "new_tokens": NEW_TOKENS}
    for name, case in CASES.items():
        for number, (tp, pp, options) in enumerate(case.layouts):
            checkpoint = folder / f"{name}-{number}"
            pipeline.make_checkpoint(str(models[name]), checkpoint, ConvertOptions(tp, pp, "float32", **options))
            jobs.append({"checkpoint": str(checkpoint), "output": f"{checkpoint}.npz", **inputs})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    log = folder / "mpirun.log"
    argv = [sys.executable, "-m", "trtbuild.runtime.encoder", str(folder / "jobs.json")]
    process = mpi.start_ranks(argv, 4, log=log)
    try:
        assert process.wait(240) == 0, log.read_text()
    finally:
        mpi.stop_ranks(process)
    return {
        name: [dict(np.load(folder / f"{name}-{number}.npz")) for number in range(len(case.layouts))]
        for name, case in CASES.items()
    }


@pytest.mark.parametrize("name", list(CASES))
def test_numbers_equal_transformers(name: str, models: dict[str, Path], numbers: dict[str, Any]) -> None:
    case = CASES[name]
    expected = reference(case, models[name])
    for layout, found in zip(case.layouts, numbers[name], strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].shape == value.shape, (layout, key)
            if key == "tokens":
                assert found[key].tolist() == value.tolist(), layout
                assert len(set(value.tolist())) > 2  # not one token over and over, which anything could give
            else:
                error = np.abs(found[key] - value).max() / np.abs(value).max()
                assert error < 5e-5, (layout, key, error)


# --- rank files, assembled by hand -----------------------------------------------------------------------------------

TP = 2


def part(tensor: torch.Tensor, rank: int, dim: int = 0) -> torch.Tensor:
    return tensor.chunk(TP, dim)[rank]


def stacked(state: dict[str, torch.Tensor], names: list[str], kind: str, rank: int) -> torch.Tensor:
    return torch.cat([part(state[f"{name}.{kind}"], rank) for name in names])


def bert_rank(state: dict[str, torch.Tensor], source: str, target: str, rank: int) -> dict[str, torch.Tensor]:
    """The encoder's tensors of one of two ranks."""
    into, end = f"{target}embedding.", f"{source}embeddings."
    tables = {"vocab_embedding": "word_embeddings", "position_embedding": "position_embeddings"}
    tables["token_embedding"] = "token_type_embeddings"
    made = {f"{into}{ours}.weight": state[f"{end}{theirs}.weight"] for ours, theirs in tables.items()}
    for kind in ("weight", "bias"):
        made[f"{into}embedding_ln.{kind}"] = state[f"{end}LayerNorm.{kind}"]
        for i in range(3):
            at, to = f"{source}encoder.layer.{i}.", f"{target}layers.{i}."
            qkv = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
            made[f"{to}attention.qkv.{kind}"] = stacked(state, qkv, kind, rank)
            made[f"{to}input_layernorm.{kind}"] = state[f"{at}attention.output.LayerNorm.{kind}"]
            made[f"{to}post_layernorm.{kind}"] = state[f"{at}output.LayerNorm.{kind}"]
            made[f"{to}mlp.fc.{kind}"] = part(state[f"{at}intermediate.dense.{kind}"], rank)
            for ours, theirs in (("attention.dense", "attention.output.dense"), ("mlp.proj", "output.dense")):
                whole = state[f"{at}{theirs}.{kind}"]
                made[f"{to}{ours}.{kind}"] = part(whole, rank, 1) if kind == "weight" else whole
    return made


BERT_HEADS: dict[str, tuple[str, str, dict[str, str]]] = {
    "bert": ("", "", {}),
    "bert-questions": ("bert.", "bert.", {"qa_outputs": "qa_outputs"}),
    "bert-classes": ("bert.", "bert.", {"pooler.dense": "bert.pooler.dense", "classifier": "classifier"}),
    "roberta": ("", "", {}),
    "roberta-questions": ("roberta.", "bert.", {"qa_outputs": "qa_outputs"}),
    "roberta-classes": (
        "roberta.",
        "bert.",
        {"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"},
    ),
}


def assert_rank(path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_rank(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float16
        assert torch.equal(found[name], tensor.half()), name


@pytest.mark.parametrize("name", list(BERT_HEADS))
def test_bert_rank_files(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    out = pipeline.make_checkpoint(str(models[name]), tmp_path / "out", ConvertOptions(TP))
    state = load_rank(models[name] / "model.safetensors")
    source, target, heads = BERT_HEADS[name]
    for rank in range(TP):
        expected = bert_rank(state, source, target, rank)
        for ours, theirs in heads.items():
            expected |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
        assert_rank(out / f"rank{rank}.safetensors", expected)
    config = json.loads((out / "config.json").read_text())
    is_roberta = name.startswith("roberta")
    assert config["architecture"] == CASES[name].model
    assert (config["is_roberta"], config["pad_token_id"]) == (is_roberta, int(is_roberta))
    assert config["num_labels"] == CASES[name].changes.get("num_labels", 2)
    assert (config["type_vocab_size"], config["position_embedding_type"]) == (2, "learned_absolute")
    assert (config["max_position_embeddings"], config["norm_epsilon"], config["head_size"]) == (64, 1e-12, 12)


def t5_rank(state: dict[str, torch.Tensor], half: str, layers: list[int], rank: int) -> dict[str, torch.Tensor]:
    """The layers of one of two tensor-parallel ranks, numbered from 0; without what only one stage has."""
    made, decoder = {}, half == "decoder"
    table = part(state[f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].T, rank)
    own = "self_attention" if decoder else "attention"
    for local, i in enumerate(layers):
        at, to = f"{half}.block.{i}.layer.", f"transformer.layers.{local}."
        blocks = {own: (f"{at}0.SelfAttention.", f"{at}0.layer_norm.weight")}
        if decoder:
            blocks["cross_attention"] = (f"{at}1.EncDecAttention.", f"{at}1.layer_norm.weight")
        for name, (block, norm) in blocks.items():
            made[f"{to}{name}_layernorm.weight"] = state[norm]
            made[f"{to}{name}.qkv.weight"] = stacked(state, [block + letter for letter in "qkv"], "weight", rank)
            made[f"{to}{name}.dense.weight"] = part(state[f"{block}o.weight"], rank, 1)
        made[f"{to}{own}.rel_attn_table"] = table
        mlp = f"{at}{1 + decoder}."
        inner = f"{mlp}DenseReluDense."
        made[f"{to}mlp_layernorm.weight"] = state[f"{mlp}layer_norm.weight"]
        made[f"{to}mlp.proj.weight"] = part(state[f"{inner}wo.weight"], rank, 1)
        gated = f"{inner}wi_0.weight" in state
        made[f"{to}mlp.fc.weight"] = part(state[f"{inner}wi_0.weight" if gated else f"{inner}wi.weight"], rank)
        if gated:
            made[f"{to}mlp.gate.weight"] = part(state[f"{inner}wi_1.weight"], rank)
    return made | ({"rel_attn_table": table} if decoder else {})


@pytest.mark.parametrize("name", ["t5", "flan-t5", "mt5"])
def test_t5_rank_files(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    out = pipeline.make_checkpoint(str(models[name]), tmp_path / "out", ConvertOptions(TP, 2))
    state = load_rank(models[name] / "model.safetensors")
    head = torch.cat([state.get("lm_head.weight", state["shared.weight"]), torch.zeros(1, 48)])  # 211 -> 212 rows
    for half, stages in {"encoder": [[0, 1], [2]], "decoder": [[0], [1]]}.items():
        for rank in range(4):
            pp_rank, tp_rank = divmod(rank, TP)
            expected = t5_rank(state, half, stages[pp_rank], tp_rank)
            if pp_rank == 0:
                expected["transformer.vocab_embedding.weight"] = state["shared.weight"]
            else:
                expected["transformer.ln_f.weight"] = state[f"{half}.final_layer_norm.weight"]
                if half == "decoder":
                    expected["lm_head.weight"] = part(head, tp_rank)
            assert_rank(out / half / f"rank{rank}.safetensors", expected)
    manifest = json.loads((out / "trtbuild.json").read_text())["files"]
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert manifest == {n: sha256(p.read_bytes()).hexdigest() for n, p in files.items() if n not in OUTERMOST}
    assert len(manifest) == 12


def test_t5_configs(models: dict[str, Path], tmp_path: Path) -> None:
    for name, gated, scaled in (("t5", False, True), ("flan-t5", True, False), ("mt5", True, False)):
        out = pipeline.make_checkpoint(str(models[name]), tmp_path / name, ConvertOptions())
        encoder, decoder = (json.loads((out / half / "config.json").read_text()) for half in ("encoder", "decoder"))
        for config in (encoder, decoder):
            assert (config["gated_act"], config["mlp_type"]) == (gated, int(gated))
            assert config["hidden_act"] == ("gelu_new" if gated else "relu")
            assert (config["hidden_size"], config["head_size"], config["intermediate_size"]) == (48, 16, 96)
            assert (config["q_scaling"], config["position_embedding_type"]) == (0.25, "relative")
            assert (config["num_buckets"], config["max_distance"], config["model_type"]) == (16, 24, "t5")
            assert (config["layernorm_type"], config["layernorm_position"]) == (1, 0)
        assert (encoder["architecture"], encoder["num_hidden_layers"]) == ("EncoderModel", 3)
        assert (decoder["architecture"], decoder["num_hidden_layers"]) == ("DecoderModel", 2)
        assert decoder["rescale_before_lm_head"] is scaled
        assert [decoder[f"encoder_{key}"] for key in ("hidden_size", "num_heads", "head_size")] == [48, 4, 16]
        assert [decoder[f"{key}_token_id"] for key in ("decoder_start", "eos", "bos", "pad")] == [0, 1, None, 0]
        assert decoder["use_implicit_relative_attention"] is False
        assert decoder["skip_cross_kv"] is False


# --- what is said when it cannot be done -----------------------------------------------------------------------------


def problems(model: Path, options: ConvertOptions) -> str:
    with pytest.raises(PlanError) as caught:
        pipeline.make_plan(str(model), options).require()
    return str(caught.value)


def test_problems_of_both_halves_come_together(models: dict[str, Path], tmp_path: Path) -> None:
    folder = make_model(CASES["t5"], tmp_path / "t5")

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["encoder.final_layer_norm.weight"], tensors["decoder.block.1.layer.2.layer_norm.weight"]
        tensors["decoder.block.0.layer.0.SelfAttention.q.bias"] = torch.zeros(64)
        tensors["odd.weight"] = torch.zeros(1)

    edit_weights(folder, damage)
    said = problems(folder, ConvertOptions(3, 3, quant="int8"))
    for sentence in (
        "encoder: missing tensors: encoder.final_layer_norm.weight",
        "decoder: missing tensors: decoder.block.1.layer.2.layer_norm.weight",
        "decoder.block.0.layer.0.SelfAttention.q.bias",
        "odd.weight",
        "tp 3 does not divide 4 attention heads; tp 1, 2 or 4 works",
        "decoder: pp 3 is more than the 2 layers",
        "encoder: TensorRT-LLM has no quantized form of EncoderModel",
    ):
        assert sentence in said
    assert said.count("tp 3 does not divide 4 attention heads") == 1


def test_bert_refusals(models: dict[str, Path], tmp_path: Path) -> None:
    said = problems(models["bert"], ConvertOptions(1, 2, quant="int8", use_parallel_embedding=True))
    assert "cannot cut BertModel into pipeline stages; use pp 1" in said
    assert "no quantized form of BertModel" in said
    assert "holds its embeddings whole" in said
    config = json.loads((models["bert"] / "config.json").read_text())
    config |= {"intermediate_size": 100, "is_decoder": True, "position_embedding_type": "relative_key"}
    with pytest.raises(UnsupportedModel, match=r"(?s)position_embedding_type is 'relative_key'.*is_decoder is True"):
        read_specs(config)
    config |= {"is_decoder": False, "position_embedding_type": "absolute"}
    with pytest.raises(UnsupportedModel, match="intermediate_size is 100; supported: 4 x hidden_size = 192"):
        read_specs(config)


def test_t5_refusals(models: dict[str, Path]) -> None:
    config = json.loads((models["t5"] / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match="feed_forward_proj is 'gated-mish'; supported"):
        read_specs({**config, "feed_forward_proj": "gated-mish"})
    config = json.loads((models["mt5"] / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings is true in an mT5 config of transformers 4"):
        read_specs({**config, "transformers_version": "4.44.0"})


def test_files_with_other_names(models: dict[str, Path], tmp_path: Path) -> None:
    """A BertModel cut out of a masked language model, and a T5 whose table goes by the encoder's name."""
    plain = pipeline.make_checkpoint(str(models["bert"]), tmp_path / "plain", ConvertOptions(2))
    folder = make_model(CASES["bert"], tmp_path / "prefixed")

    def prefix(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"bert.{name}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
        tensors["cls.predictions.bias"] = torch.zeros(211)

    edit_weights(folder, prefix)
    prefixed = pipeline.make_checkpoint(str(folder), tmp_path / "out", ConvertOptions(2))
    assert (plain / "rank1.safetensors").read_bytes() == (prefixed / "rank1.safetensors").read_bytes()

    plain = pipeline.make_checkpoint(str(models["t5"]), tmp_path / "plain-t5", ConvertOptions())
    folder = make_model(CASES["t5"], tmp_path / "renamed")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        tensors["decoder.embed_tokens.weight"] = tensors["encoder.embed_tokens.weight"].clone()

    edit_weights(folder, rename)
    renamed = pipeline.make_checkpoint(str(folder), tmp_path / "out-t5", ConvertOptions())
    for half in ("encoder", "decoder"):
        files = [made / half / "rank0.safetensors" for made in (plain, renamed)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def t5_checkpoint(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.make_checkpoint(str(models["t5"]), tmp_path_factory.mktemp("made") / "t5", ConvertOptions())


def test_engine_says_what_is_supported(models: dict[str, Path], t5_checkpoint: Path, tmp_path: Path) -> None:
    for given, family in ((models["t5"], "t5"), (t5_checkpoint, "t5"), (models["roberta"], "roberta")):
        done = trtbuild("engine", given, "-o", tmp_path / "engine")
        assert done.returncode == 3
        assert f"there is no cpu engine for {family}" in done.stderr
        assert "trtbuild checkpoint" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_plan_and_families_show_both_halves(models: dict[str, Path]) -> None:
    done = trtbuild("plan", models["t5"], "--tp", "2", "--pp", "2")
    assert done.returncode == 0
    for text in ("EncoderModel: 3 layers", "DecoderModel: 2 layers", "encoder: tp 2 x pp 2", "decoder: tp 2 x pp 2"):
        assert text in done.stdout
    plan = json.loads(trtbuild("plan", models["t5"], "--tp", "2", "--json").stdout)
    assert plan["folders"] == ["encoder", "decoder"]
    assert [(rank["folder"], rank["rank"]) for rank in plan["ranks"]] == [
        (half, rank) for half in ("encoder", "decoder") for rank in range(2)
    ]
    state = load_rank(models["t5"] / "model.safetensors")
    assert plan["parameters"] == sum(tensor.numel() for tensor in state.values())
    rows = json.loads(trtbuild("show", "families", "--json").stdout)["families"]
    assert {row["note"] for row in rows if row["family"] in ("t5", "bert", "roberta")} == {
        "no cpu engine: checkpoint and its numbers only"
    }
