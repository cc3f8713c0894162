"""Calibration layer by layer, against transformers run as a whole with forward hooks, in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import family_models, test_moe
from trtbuild.calibrate.cache import searched_factor
from trtbuild.checkpoint.config import load_config, read_specs, trtllm_config
from trtbuild.checkpoint.layer import read_tensors
from trtbuild.checkpoint.source import read_index
from trtbuild.layout import RankJobs, TensorInfo
from trtbuild.plan import make_plan
from trtbuild.quantize.statistics import InputAccumulator, LayerStatistics
from trtbuild.quantize.values import kv_cache_scale
from trtbuild.runtime.blockwise import Blockwise
from trtbuild.spec import ConvertOptions

SEQUENCES, LENGTH = 3, 45  # longer than every window and than the switch of long rope
# Names of the Hugging Face modules whose inputs are those of our linears, in layer 1.
LLAMA = {
    "attention.qkv": "model.layers.1.self_attn.q_proj",
    "attention.dense": "model.layers.1.self_attn.o_proj",
    "mlp.fc_gate": "model.layers.1.mlp.gate_proj",
    "mlp.proj": "model.layers.1.mlp.down_proj",
}
HOOKS = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma2": LLAMA,
    "gpt2": {
        "attention.qkv": "transformer.h.1.attn.c_attn",
        "attention.dense": "transformer.h.1.attn.c_proj",
        "mlp.fc": "transformer.h.1.mlp.c_fc",
        "mlp.proj": "transformer.h.1.mlp.c_proj",
    },
    "mixtral": {key: LLAMA[key] for key in ("attention.qkv", "attention.dense")},
}


@dataclass
class Source:
    """A model folder as the converter sees it, for one rank in float32, and transformers' own model of it."""

    jobs: RankJobs
    index: dict[str, TensorInfo]
    config: dict[str, Any]
    model: Any

    def weights(self, prefix: str = "", without: str = "\0") -> dict[str, torch.Tensor]:
        return read_tensors(
            self.jobs, self.index, lambda job: job.name.startswith(prefix) and not job.name.startswith(without)
        )


def make_source(name: str, folder: Path) -> Source:
    from transformers import AutoModelForCausalLM

    if name in family_models.CASES:
        family_models.make_model(family_models.CASES[name], folder)
    else:
        test_moe.make_model(folder, name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    index = read_index(folder)
    ((family, spec),) = read_specs(load_config(folder))
    plan = make_plan(family, spec, ConvertOptions(dtype="float32"), index)
    plan.require()
    config = json.loads(json.dumps(trtllm_config(family, spec, plan.options, None)))
    return Source(plan.ranks[0], index, config, model)


def token_ids() -> torch.Tensor:
    return torch.randint(1, 131, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(3))


def hidden_before(source: Source, blocks: Blockwise, layer: int) -> list[torch.Tensor]:
    tables = source.weights(without="transformer.layers.")
    hidden = [blocks.embed(ids, tables) for ids in token_ids()]
    for i in range(layer):
        run = blocks.layer(i, source.weights(f"transformer.layers.{i}."))
        hidden = [run.run(x).clone() for x in hidden]
    return hidden


@pytest.mark.parametrize("name", [*family_models.CASES, *test_moe.MODELS])
def test_blocks_one_after_the_other_are_the_model(name: str, tmp_path: Path) -> None:
    source = make_source(name, tmp_path)
    blocks = Blockwise(source.config, LENGTH)
    head = source.weights(without="transformer.layers.")
    found = torch.stack([blocks.head(x, head) for x in hidden_before(source, blocks, blocks.num_layers)])
    with torch.no_grad():
        wanted = source.model(token_ids()).logits
    assert wanted.std() > 0.02
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HOOKS)
def test_statistics_equal_forward_hooks(name: str, tmp_path: Path) -> None:
    source = make_source(name, tmp_path)
    seen: dict[str, list[torch.Tensor]] = {key: [] for key in HOOKS[name]}
    for key, path in HOOKS[name].items():
        module = source.model.get_submodule(path)
        module.register_forward_pre_hook(lambda _, args, key=key: seen[key].append(args[0][0].clone()))
    with torch.no_grad():
        for ids in token_ids():
            source.model(ids[None])
    blocks = Blockwise(source.config, LENGTH)
    statistics = LayerStatistics({linear.name: linear.in_features for linear in blocks.linears(1)}, gram=True)
    run = blocks.layer(1, source.weights("transformer.layers.1."))
    for hidden in hidden_before(source, blocks, 1):
        run.run(hidden, statistics)
    found = statistics.stats()
    for key, batches in seen.items():
        every = torch.cat(batches)
        assert found[key].tokens == len(every) == SEQUENCES * LENGTH
        torch.testing.assert_close(found[key].amax, every.abs().amax(0), rtol=1e-4, atol=1e-5)
        means = torch.stack([x.abs().mean(0) for x in batches]).mean(0)
        torch.testing.assert_close(found[key].abs_mean, means, rtol=1e-4, atol=1e-5)
        gram = (every.double().T @ every.double() / len(every)).float()
        torch.testing.assert_close(found[key].gram, gram, rtol=1e-4, atol=1e-4)


def test_key_and_value_maxima_equal_forward_hooks(tmp_path: Path) -> None:
    source = make_source("llama", tmp_path)
    seen = {"k": 0.0, "v": 0.0}

    def hear(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
            seen[name] = max(seen[name], float(output.abs().max()))

        return hook

    for name in seen:
        source.model.get_submodule(f"model.layers.1.self_attn.{name}_proj").register_forward_hook(hear(name))
    with torch.no_grad():
        source.model(token_ids())
    blocks = Blockwise(source.config, LENGTH)
    statistics = LayerStatistics({linear.name: linear.in_features for linear in blocks.linears(1)})
    run = blocks.layer(1, source.weights("transformer.layers.1."))
    for hidden in hidden_before(source, blocks, 1):
        run.run(hidden, statistics)
    assert (statistics.amax_k, statistics.amax_v) == pytest.approx((seen["k"], seen["v"]), rel=1e-4)


def test_experts_hear_only_the_tokens_routed_to_them(tmp_path: Path) -> None:
    """The router of transformers on the same hidden states says how many tokens each expert gets."""
    source = make_source("mixtral", tmp_path)
    with torch.no_grad():
        logits = source.model(token_ids(), output_router_logits=True).router_logits[1]
    wanted = logits.topk(2, dim=-1).indices.flatten().bincount(minlength=8).tolist()
    blocks = Blockwise(source.config, LENGTH)
    linears = blocks.linears(1)
    statistics = LayerStatistics({linear.name: linear.in_features for linear in linears})
    run = blocks.layer(1, source.weights("transformer.layers.1."))
    for hidden in hidden_before(source, blocks, 1):
        run.run(hidden, statistics)
    assert statistics.expert_tokens == {"mlp.fc": wanted, "mlp.proj": wanted}
    assert statistics.stats()["mlp.fc"].tokens == 2 * SEQUENCES * LENGTH
    assert {linear.name: linear.experts for linear in linears} == {
        "attention.qkv": 0, "attention.dense": 0, "mlp.fc": 8, "mlp.proj": 8}  # fmt: skip


def test_every_batch_counts_the_same_and_an_empty_one_does_not() -> None:
    accumulator = InputAccumulator(2)
    for batch in ([[1.0, -2.0]], [[3.0, 0.0], [5.0, 0.0]]):
        accumulator.add(torch.tensor(batch))
    accumulator.add(torch.empty(0, 2))
    stats = accumulator.stats()
    assert (stats.tokens, stats.amax.tolist(), stats.abs_mean.tolist()) == (3, [5.0, 2.0], [2.5, 1.0])
    assert stats.gram is None
    assert InputAccumulator(2).stats().tokens == 0


def test_a_token_beyond_the_median_counts_by_its_length() -> None:
    """The gram of a search for the least error; the other numbers are of the inputs as they are."""
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(7, 5, generator=generator) for _ in range(3)]
    for batch in batches:
        batch[0] *= 1000
    accumulator = InputAccumulator(5, gram=True, even=True)
    for batch in batches:
        accumulator.add(batch)
    found = accumulator.stats()
    rows = []
    for batch in batches:
        lengths = [float(x.square().sum().sqrt()) for x in batch]
        median = sorted(lengths)[3]
        rows.append(torch.stack([x * min(1.0, median / size) ** 0.5 for x, size in zip(batch, lengths, strict=True)]))
    even = torch.cat(rows)
    torch.testing.assert_close(found.gram, even.T @ even / len(even))
    torch.testing.assert_close(found.amax, torch.cat(batches).abs().amax(0))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_scale_of_an_int8_cache_is_that_of_least_error(name: str, tmp_path: Path) -> None:
    """Keys and values of transformers' own attention, rounded with each candidate."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    source = make_source(name, tmp_path)
    blocks = Blockwise(source.config, LENGTH)
    hidden = hidden_before(source, blocks, 0)
    run = blocks.layer(0, source.weights("transformer.layers.0."))
    statistics = LayerStatistics({})
    for states in hidden:
        run.run(states, statistics)
    start = kv_cache_scale("INT8", statistics.amax_k, statistics.amax_v)
    found = searched_factor(run, start, hidden)
    step: list[torch.Tensor] = []

    def attend(module: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> Any:
        if module.layer_idx == 0 and step:
            k, v = ((x / step[0]).round().clamp(-128, 127) * step[0] for x in (k, v))
        return sdpa_attention_forward(module, q, k, v, *rest, **options)

    ALL_ATTENTION_FUNCTIONS.register("rounded_for_test", attend)
    source.model.config._attn_implementation = "rounded_for_test"
    outputs: list[torch.Tensor] = []
    source.model.model.layers[0].register_forward_hook(
        lambda _module, _args, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )

    def error(scale: torch.Tensor | None) -> torch.Tensor:
        step[:] = [] if scale is None else [scale]
        outputs.clear()
        with torch.no_grad():
            source.model.model(token_ids())
        return outputs[0].reshape(SEQUENCES, LENGTH, -1)

    exact = error(None)
    losses = {
        float(start * factor): float(((error(start * factor) - exact).square().sum(-1) / exact.square().sum(-1)).sum())
        for factor in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
    }
    print({round(scale / float(start), 1): loss for scale, loss in losses.items()})
    assert losses[float(start * found)] <= 1.01 * min(losses.values())
