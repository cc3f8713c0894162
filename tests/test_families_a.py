"""The Llama-like families: every rank's tensors against ones assembled by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.by_hand import BASE, MODELS, Layout, check, make
from tests.tiny import edit_weights
from trtbuild import pipeline
from trtbuild.checkpoint.config import read_spec
from trtbuild.errors import PlanError, UnsupportedModel
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def get(name: str, dtype: str = "float32", **changes: Any) -> Path:
        key = f"{name}-{dtype}-{json.dumps(changes)}"
        if key not in made:
            made[key] = make(name, tmp_path_factory.mktemp(name), dtype, **changes)
        return made[key]

    return get


LAYOUTS = {
    "tp1": Layout(),
    "tp2-pp2": Layout(2, 2, dtype="bfloat16"),
    "tp4-pp3": Layout(4, 3, dtype="float32"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_equal_assembly_by_hand(models: Callable[..., Path], name: str, layout: Layout, tmp_path: Path) -> None:
    check(models(name), layout, tmp_path / "out")


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
@pytest.mark.parametrize("ep", [2, 4])
def test_experts_are_shared(models: Callable[..., Path], name: str, ep: int, tmp_path: Path) -> None:
    config = check(models(name, "bfloat16"), Layout(4, 2, ep), tmp_path / "out")
    assert (config["mapping"]["moe_tp_size"], config["mapping"]["moe_ep_size"]) == (4 // ep, ep)
    assert config["moe"]["num_experts"] == 4
    assert config["moe"]["top_k"] == 2
    assert config["moe"]["normalization_mode"] == (0 if name == "Qwen2Moe" else 1)
    assert config["hidden_act"] == "swiglu"


@pytest.mark.parametrize("embedding", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["Mistral", "Qwen2", "Mixtral"])
def test_embeddings(models: Callable[..., Path], name: str, tied: bool, embedding: int, tmp_path: Path) -> None:
    folder = models(name, "bfloat16", tie_word_embeddings=tied)
    check(folder, Layout(4, 2, embedding=embedding), tmp_path / "out")


def test_text_part_of_a_multi_modal_gemma3(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**BASE, **MODELS["Gemma3"]},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(2)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "hf")
    assert check(tmp_path / "hf", Layout(2, 2), tmp_path / "out")["architecture"] == "Gemma3ForCausalLM"


def test_gemma_fields(models: Callable[..., Path], tmp_path: Path) -> None:
    two = check(models("Gemma2"), Layout(2), tmp_path / "two")
    assert (two["query_pre_attn_scalar"], two["final_logit_softcapping"], two["attn_logit_softcapping"]) == (24, 30, 50)
    assert two["use_parallel_embedding"]
    assert two["max_attention_window"] == [16, 64]
    three = check(models("Gemma3"), Layout(), tmp_path / "three")
    assert three["sliding_window"] == 16
    assert three["_sliding_window_pattern"] == three["sliding_window_pattern"] == 6
    assert (three["rotary_base"], three["rope_local_base_freq"]) == (1e6, 1e4)
    assert three["final_logit_softcapping"] is None
    assert "max_attention_window" not in three
    with pytest.raises(PlanError, match="tp 2 does not divide 67 tokens of the vocabulary"):
        pipeline.make_checkpoint(str(models("Gemma", vocab_size=67)), tmp_path / "odd", ConvertOptions(2))


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("Mistral", {"sliding_window": 16}),
    ("Mistral", {"sliding_window": None}),
    ("Mistral", {"sliding_window": 64}),
    ("Mixtral", {"sliding_window": 8}),
    ("Qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}),
    ("Qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 9}),
    ("Qwen2", {"sliding_window": 16}),
    ("Qwen3", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}),
    ("Gemma2", {"sliding_window": 16, "num_hidden_layers": 5}),
]


@pytest.mark.parametrize("old", [False, True], ids=["transformers 5", "transformers 4"])
@pytest.mark.parametrize(("name", "changes"), WINDOWS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(WINDOWS)])
def test_windows_are_those_of_transformers(name: str, changes: dict[str, Any], old: bool) -> None:
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**BASE, **MODELS[name], **changes})
    document = {**config.to_dict(), "architectures": [f"{name}ForCausalLM"]}
    if old:
        rope = document.pop("rope_parameters")
        document.pop("layer_types", None)
        document |= {"rope_theta": rope["rope_theta"], "torch_dtype": "float16"}
        if name.startswith("Qwen"):
            document["sliding_window"] = changes["sliding_window"]
    layers = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    slides = [kind == "sliding_attention" and config.sliding_window is not None for kind in kinds]
    expected = [min(config.sliding_window, 64) if slide else 64 for slide in slides]
    _, spec = read_spec(document)
    found = spec.config.get("max_attention_window", [64])
    assert [found[layer % len(found)] for layer in range(layers)] == expected
    assert ("max_attention_window" in spec.config) == (min(expected) < 64)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_factor": 1.0},
        {"mscale": 0.7, "mscale_all_dim": 0.7},
        {"mscale": 0.7},
        {"mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": None},
        {"attention_factor": 1.1386294},
    ],
)
def test_yarn_is_taken_where_both_scale_attention_alike(changes: dict[str, Any]) -> None:
    """By transformers' own factor, and by the formula of TensorRT-LLM's create_sinusoidal_positions_yarn."""
    from transformers import Qwen2Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {**YARN, **changes}
    config = Qwen2Config(**BASE, rope_parameters={**rope, "rope_theta": 1e4})
    _, hugging_face = ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu")

    def magnitude(weight: float) -> float:
        return 0.1 * weight * float(torch.tensor(4.0).log()) + 1

    tensorrt = magnitude(rope.get("mscale", 1.0)) / magnitude(rope.get("mscale_all_dim", 0.0))
    document = {**config.to_dict(), "architectures": ["Qwen2ForCausalLM"]}
    if abs(hugging_face - tensorrt) < 1e-5:
        scaling = read_spec(document)[1].config["rotary_scaling"]
        assert scaling == {name: value for name, value in rope.items() if value is not None}
    else:
        with pytest.raises(UnsupportedModel, match=f"factor is {hugging_face:g}, but .* would make it {tensorrt:g}"):
            read_spec(document)


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Llama": (
        {"rope_parameters": {"rope_type": "yarn", "factor": -1}, "hidden_act": "gelu", "sliding_window": 8},
        [
            "factor is -1",
            "original_max_position_embeddings is missing",
            "hidden_act is 'gelu'",
            "sliding_window is set",
        ],
    ),
    "Mistral": (
        {
            "sliding_window": "big",
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0},
            "model_type": "ministral",
        },
        [
            "sliding_window is 'big'",
            "'dynamic'; supported: default, linear, llama3, yarn (T",
            "model_type is 'ministral'",
        ],
    ),
    "Mixtral": (
        {"num_local_experts": 0, "num_experts_per_tok": None, "sliding_window": -4, "head_dim": "x"},
        ["num_local_experts is 0", "num_experts_per_tok is None", "sliding_window is -4", "head_dim is 'x'"],
    ),
    "Qwen2": (
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["chunked_attention"], "hidden_act": "relu"},
        ["layer_types is ['chunked_attention'] for 1 layers", "hidden_act is 'relu'"],
    ),
    "Qwen2Moe": (
        {"mlp_only_layers": [1], "decoder_sparse_step": 2, "num_experts_per_tok": 9, "norm_topk_prob": "yes"},
        [
            "mlp_only_layers is [1]; supported: [] (TensorRT-LLM makes every layer",
            "decoder_sparse_step is 2; supported: 1",
            "num_experts_per_tok 9 is more than the 4 experts",
            "norm_topk_prob is 'yes'",
        ],
    ),
    "Qwen3": (
        {"attention_bias": True, "use_sliding_window": True, "max_window_layers": "all"},
        ["attention_bias is set: TensorRT-LLM's class has no bias on", "max_window_layers is 'all'"],
    ),
    "Qwen3Moe": (
        {"use_sliding_window": True, "sliding_window": 16, "mlp_only_layers": [0], "attention_bias": True},
        ["use_sliding_window is set without layer_types", "mlp_only_layers is [0]", "attention_bias is set"],
    ),
    "Gemma": (
        {"hidden_act": "silu", "use_bidirectional_attention": True, "head_dim": 0},
        ["hidden_act is 'silu'", "use_bidirectional_attention is set", "head_dim is 0"],
    ),
    "Gemma2": (
        {"hidden_activation": "gelu", "final_logit_softcapping": -1, "attn_logit_softcapping": "x"},
        ["hidden_act is 'gelu'", "final_logit_softcapping is -1", "attn_logit_softcapping is 'x'"],
    ),
    "Gemma3": (
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            },
            "attn_logit_softcapping": 50.0,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
        [
            "rope_scaling is set: TensorRT-LLM would scale the local layers too",
            "the rope_type of sliding_attention is 'linear'",
            "attn_logit_softcapping is set",
            "layer_types must be full_attention in every n-th layer",
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_come_together(models: Callable[..., Path], name: str) -> None:
    changes, expected = BAD[name]
    document = json.loads((models(name) / "config.json").read_text())
    with pytest.raises(UnsupportedModel) as caught:
        read_spec({**document, **changes})
    missing = [text for text in expected if text not in caught.value.message]
    assert not missing, caught.value.message
    assert f"has {len(expected)} values" in caught.value.message


def test_layer_types_decide_over_the_pattern_of_gemma3(models: Callable[..., Path]) -> None:
    document = json.loads((models("Gemma3") / "config.json").read_text())
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    for layer_types, pattern in ((kinds, 2), (["full_attention"] * 3, 1), (["sliding_attention"] * 3, 6)):
        _, spec = read_spec({**document, "layer_types": layer_types})
        assert spec.config["_sliding_window_pattern"] == pattern
    old = {**{k: v for k, v in document.items() if k not in ("layer_types", "rope_parameters")}, "rope_theta": 5e5}
    _, spec = read_spec({**old, "sliding_window_pattern": 3, "rope_local_base_freq": 2e4})
    assert spec.config["_sliding_window_pattern"] == 3
    assert (spec.config["rotary_base"], spec.config["rope_local_base_freq"]) == (5e5, 2e4)


def test_fused_experts_are_named(models: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models("Qwen3Moe"), tmp_path / "fused"))

    def fuse(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".experts." in name]:
            del weights[name]
        weights["model.layers.0.mlp.experts.gate_up_proj"] = torch.zeros(4, 48, 32)

    edit_weights(folder, fuse)
    plan = pipeline.make_plan(str(folder), ConvertOptions())
    text = "\n".join(plan.problems)
    assert "missing tensors: model.layers.0.mlp.experts.0.up_proj.weight" in text
    assert "model.layers.0.mlp.experts.gate_up_proj: experts fused into one tensor; save the model with" in text
    assert "unexpected" not in text


def test_expert_layouts_that_do_not_fit(models: Callable[..., Path]) -> None:
    def problems(folder: Path, options: ConvertOptions) -> tuple[str, ...]:
        return pipeline.make_plan(str(folder), options).problems

    mixtral, three = models("Mixtral"), models("Mixtral", num_local_experts=3)
    assert problems(mixtral, ConvertOptions(4, moe_tp_size=2, moe_ep_size=3)) == ("moe_tp 2 x moe_ep 3 is not tp 4",)
    assert problems(three, ConvertOptions(2, moe_ep_size=2)) == (
        "moe_ep 2 does not divide 3 experts; only moe_ep 1 works",
    )
    narrow = models("Qwen3Moe", moe_intermediate_size=18)
    uncut = "tp 4 does not divide 18 intermediate features of an expert; tp 1 or 2 works"
    assert problems(narrow, ConvertOptions(4)) == (uncut,)
    assert not problems(narrow, ConvertOptions(4, moe_ep_size=2))


def test_two_spellings_of_rope_must_agree() -> None:
    both = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "rope_scaling": {"type": "linear", "factor": 2},
    }
    document = {**BASE, "architectures": ["MistralForCausalLM"], "model_type": "mistral", **both}
    with pytest.raises(UnsupportedModel, match="rope_scaling and rope_parameters say different things"):
        read_spec(document)
    both["rope_parameters"] = {"rope_type": "linear", "factor": 2, "rope_theta": 5e4}
    _, spec = read_spec({**document, **both})
    assert (spec.config["rotary_base"], spec.config["rotary_scaling"]["factor"]) == (5e4, 2)
