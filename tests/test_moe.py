"""Mixture of experts against transformers: Mixtral, Qwen2-MoE and Qwen3-MoE, for every way to share the experts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.engines import greedy, log_probs_of, random_prompts, tokens_of
from tests.family_ranks import job_of, run_jobs
from tests.tiny import CONFIG
from trtbuild import pipeline
from trtbuild.engine.cpu_rank import build_rank
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import EngineError
from trtbuild.mapping import Mapping
from trtbuild.runtime.executor import EXECUTORS, Batch, State
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.runtime.ops import Buffer, Kind, Op
from trtbuild.runtime.program import build_program
from trtbuild.spec import ConvertOptions

# Every size leaves odd shares: an expert of 4 ranks is 10 wide, which is no whole number of vectors.
_SIZES = {"num_hidden_layers": 3, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 40}
_QWEN = {**_EXPERTS, "moe_intermediate_size": 40, "num_experts": 12, "num_experts_per_tok": 3, "mlp_only_layers": []}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {**_EXPERTS, "num_local_experts": 8}),
    "qwen2-moe": ("Qwen2Moe", {**_QWEN, "shared_expert_intermediate_size": 72, "norm_topk_prob": False}),
    "qwen2-moe-renormalized": ("Qwen2Moe", {**_QWEN, "shared_expert_intermediate_size": 72, "norm_topk_prob": True}),
    "qwen3-moe": ("Qwen3Moe", {**_QWEN, "norm_topk_prob": True}),
    "qwen3-moe-as-they-are": ("Qwen3Moe", {**_QWEN, "norm_topk_prob": False}),
}


@dataclass(frozen=True)
class Layout:
    tp: int
    pp: int
    moe_tp: int
    moe_ep: int

    def __str__(self) -> str:
        return f"tp{self.tp}-pp{self.pp}-moe{self.moe_tp}x{self.moe_ep}"


MAIN = ("mixtral", "qwen2-moe", "qwen3-moe")  # the others differ in their router alone
# The first three run on both executors, the last two are 4 ranks for 2 kv heads.
LAYOUTS = [
    Layout(1, 1, 1, 1),
    Layout(2, 1, 2, 1),
    Layout(2, 1, 1, 2),
    Layout(1, 2, 1, 1),
    Layout(2, 2, 1, 2),
    Layout(4, 1, 2, 2),
    Layout(4, 1, 1, 4),
]
CASES = [
    (model, layout, executor, "none")
    for model in MODELS
    for layout in LAYOUTS
    for executor in (EXECUTORS if layout in LAYOUTS[:3] else ["native"])
    if model in MAIN or layout in LAYOUTS[:1]
]
INT8 = [(model, layout, executor, "int8") for model in MAIN for layout in LAYOUTS[:3] for executor in EXECUTORS]
NEW_TOKENS = 12
PROMPTS = [list(prompt) for prompt in random_prompts(4, 500, longest=60)]


def make_model(folder: Path, name: str) -> Path:
    """A random model whose routers are decided, and whose norms and biases are not those of a fresh model."""
    import transformers

    family, changes = MODELS[name]
    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**{**CONFIG, **_SIZES, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.1)
            elif key.endswith("gate.weight"):
                value.copy_(torch.randn_like(value) * 0.3)
            elif value.dim() == 3:
                value.mul_(4)  # experts that matter
    model.save_pretrained(folder)
    return folder


def build_here(checkpoint: Path, out: Path) -> Path:
    """The engine of a checkpoint of one rank, in this process."""
    config = json.loads((checkpoint / "config.json").read_text())
    out.mkdir()
    build_rank(checkpoint, out, config, Mapping())
    limits = BuildOptions(max_batch_size=8, max_num_tokens=32).build_config(config)
    document = {
        "pretrained_config": config,
        "build_config": limits,
        "trtbuild": {"target": "cpu", "executor": "native"},
    }
    (out / "config.json").write_text(json.dumps(document))
    return out


class Made:
    """Models and engines by name, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, name: str) -> Path:
        found = self.folder / name
        return found if found.exists() else make_model(found, name)

    def checkpoint(self, name: str, layout: Layout, quant: str = "none") -> Path:
        found = self.folder / f"{name}-{layout}-{quant}.checkpoint"
        if not found.exists():
            options = ConvertOptions(
                layout.tp, layout.pp, "float32", quant, moe_tp_size=layout.moe_tp, moe_ep_size=layout.moe_ep
            )
            pipeline.make_checkpoint(str(self.model(name)), found, options)
        return found

    def engine(self, name: str, quant: str = "none") -> Path:
        """A single rank's."""
        found = self.folder / f"{name}-{quant}.engine"
        return found if found.exists() else build_here(self.checkpoint(name, LAYOUTS[0], quant), found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("moe"))


class Reference(NamedTuple):
    """What transformers says: logits after every token of the first prompt, and the greedy tokens of all."""

    logits: np.ndarray
    tokens: list[list[int]]


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model: Any, tokens: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([list(tokens)])).logits[0].numpy()
    return found


def reference(model: Any) -> Reference:
    sequences = [list(prompt) for prompt in PROMPTS]
    for sequence in sequences:
        for _ in range(NEW_TOKENS):
            sequence.append(int(logits_of(model, sequence)[-1].argmax()))
    return Reference(logits_of(model, PROMPTS[0]), [sequence[-NEW_TOKENS:] for sequence in sequences])


def int8_model(folder: Path, layout: Layout) -> Any:
    """Every linear's weight replaced by what int8 makes of it: a scale per expert and output channel, and for weights
    that are cut along their inputs (row-parallel) per rank too, as ranks quantize what they hold."""
    model = transformers_model(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 3 or name.endswith("proj.weight"):
                cut = layout.moe_tp if value.dim() == 3 else layout.tp
                for share in value.chunk(cut if "down_proj" in name or "o_proj" in name else 1, dim=-1):
                    scale = share.abs().amax(-1, keepdim=True) / 128
                    ratio = (share / scale).double()
                    share.copy_((ratio + ratio.sign() / 2).trunc().clamp(-128, 127) * scale)  # halves away from zero
    return model


@pytest.fixture(scope="module")
def results(made: Made) -> Path:
    """Folder of the .npz files that all cases wrote in one MPI job."""
    jobs = [
        job_of(
            made.checkpoint(model, layout, quant),
            made.folder / f"{model}-{layout}-{quant}-{executor}",
            PROMPTS,
            NEW_TOKENS,
            executor,
        )
        for model, layout, executor, quant in CASES + INT8
    ]
    run_jobs(jobs, made.folder)
    return made.folder


@pytest.fixture(scope="module")
def references(made: Made) -> Callable[[str, Layout | None], Reference]:
    """The reference of a model; with a layout, of what int8 makes of it there."""

    @cache
    def find(name: str, int8: Layout | None) -> Reference:
        folder = made.model(name)
        return reference(int8_model(folder, int8) if int8 else transformers_model(folder))

    return find


@pytest.mark.parametrize(("model", "layout", "executor", "quant"), CASES + INT8, ids=str)
def test_equals_transformers(
    results: Path,
    references: Callable[[str, Layout | None], Reference],
    model: str,
    layout: Layout,
    executor: str,
    quant: str,
) -> None:
    found = np.load(results / f"{model}-{layout}-{quant}-{executor}.npz")
    expected = references(model, layout if quant == "int8" else None)
    assert np.abs(found["logits"] - expected.logits).max() < 1e-4 * np.abs(expected.logits).max()
    assert found["tokens"].tolist() == expected.tokens
    if executor == "native":
        assert np.array_equal(found["logits"], found["smaller_chunks"])


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("model", MAIN)
def test_alone_and_in_company_the_same_bits(made: Made, model: str, quant: str) -> None:
    generator = Generator(made.engine(model, quant=quant), RuntimeOptions(executor="native"))
    sampling = {"return_log_probs": True, "temperature": 0.9, "top_k": 50, "top_p": 0.95}
    prompts = random_prompts(8, 500, longest=100)
    requests = [greedy(str(i), prompt, 8 + 3 * i, seed=i, **sampling) for i, prompt in enumerate(prompts)]
    together = generator.generate(requests)
    for request in requests:
        alone = generator.generate([request])[request.request_id]
        assert tokens_of(alone) == tokens_of(together[request.request_id])
        assert log_probs_of(alone) == log_probs_of(together[request.request_id])


def test_threads_change_no_bits(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, found = list(random_prompts(1, 500, seed=9, longest=150)[0]), []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("TRTBUILD_THREADS", threads)
        found.append(Generator(made.engine("qwen2-moe"), RuntimeOptions(executor="native")).score(tokens))
    assert all(np.array_equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("renormalize", [0, 1])
@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (13, 4), (64, 8), (128, 1), (3, 3)])
def test_routing_takes_the_first_of_equals(
    made: Made, executor: str, renormalize: int, experts: int, top_k: int
) -> None:
    """Logits with many ties, against a stable sort of float64."""
    logits = np.random.default_rng(0).integers(-3, 4, (50, experts)).astype(np.float32)
    router = torch.from_numpy(logits.copy())
    empty = torch.zeros(1, 1, 1, 1, 1)
    program = build_program(config_of(made.engine("mixtral")), Mapping())
    state = State(program, {}, {Buffer.ROUTER: router}, empty, empty, empty, empty, 32)
    none = torch.zeros(50, dtype=torch.int32)
    op = Op(Kind.ROUTE, Buffer.ROUTER, n=experts, k=top_k, row=renormalize)
    EXECUTORS[executor](state, 2).run((op,), Batch(none, none, none, none[None], none[:0]))
    exponent = np.exp(logits.astype(np.float64))
    expected = exponent / exponent.sum(1, keepdims=True)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    chosen = np.zeros(expected.shape, bool)
    np.put_along_axis(chosen, best, True, axis=1)
    expected[~chosen] = 0
    if renormalize:
        expected /= expected.sum(1, keepdims=True)
    assert ((router.numpy() > 0) == chosen).all()
    assert np.allclose(router.numpy(), expected, rtol=2e-6)


def config_of(engine: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((engine / "config.json").read_text())["pretrained_config"]
    return found


@pytest.mark.parametrize(
    ("changes", "mapping", "said"),
    [
        ({"moe": {"num_experts": 8, "top_k": 9}}, Mapping(), ("top_k 9 of moe.num_experts 8",)),
        ({"moe": None}, Mapping(), ("top_k 0 of moe.num_experts 0",)),
        (
            {"moe": {"num_experts": 8, "top_k": 2, "normalization_mode": 2, "tp_mode": 1}, "residual_mlp": True},
            Mapping(),
            ("normalization_mode 2 (supported: 0, 1)", "tp_mode 1 (supported: 0)", "residual_mlp True"),
        ),
        ({"mlp_bias": True, "hidden_act": "silu"}, Mapping(), ("mlp_bias True", "hidden_act 'silu'")),
        ({}, Mapping(tp_size=3, moe_ep_size=3), ("num_experts 8 is not a multiple of moe_ep_size 3",)),
        ({}, Mapping(tp_size=3), ("intermediate size 40 is not a multiple of moe_tp_size 3",)),
        ({}, Mapping(tp_size=4, moe_ep_size=3), ("tp_size 4 is not a multiple of moe_ep_size 3",)),
        ({"architecture": "LlamaForCausalLM"}, Mapping(), ("moe.num_experts 8 (supported: 0)",)),
    ],
)
def test_what_cannot_be_executed_is_named(
    made: Made, changes: dict[str, Any], mapping: Mapping, said: tuple[str, ...]
) -> None:
    with pytest.raises(EngineError) as caught:
        build_program({**config_of(made.engine("mixtral")), **changes}, mapping)
    assert all(text in str(caught.value) for text in said), str(caught.value)
