"""The search for a layout, and the command: reasons, JSON, and a plan of 405 billion parameters in a second."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.family_models import CASES, make_model
from tests.published import document
from tests.test_sizing import LLAMA_8B, LLAMA_70B, planned
from tests.tiny import trtbuild
from trtbuild.checkpoint.config import load_config, read_specs
from trtbuild.checkpoint.source import read_index
from trtbuild.cli.app import app
from trtbuild.quantize.methods import METHODS
from trtbuild.sizing.described import described_index
from trtbuild.sizing.estimate import estimate
from trtbuild.sizing.fit import QUANTS, Choice, Fit, Wanted, fit
from trtbuild.sizing.gpus import find_gpu
from trtbuild.sizing.target import Limits, Target

LLAMA_405B = {
    **LLAMA_8B,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "max_position_embeddings": 131072,
}


def search(config: dict[str, Any], gpu: str, gpus: int, context: int = 8192, concurrency: int = 64) -> Fit:
    return fit(planned(config), Target(find_gpu(gpu), context, concurrency), gpus)


def one(found: tuple[Choice, ...], tp: int, pp: int, quant: str, kv: str) -> Choice:
    return next(c for c in found if (c.tp, c.pp, c.quant, c.kv_cache) == (tp, pp, quant, kv))


def test_the_405b_model_fits_eight_h100_in_fp8_and_not_in_bfloat16() -> None:
    """As Meta and NVIDIA serve it: FP8 on one host of eight H100; 810 GB of bfloat16 do not fit 640 GB."""
    found = search(LLAMA_405B, "H100", 16)
    best = found.fits[0]
    assert (best.gpus, best.tp, best.quant, best.kv_cache) == (8, 8, "fp8", "fp8")
    assert all(choice.gpus >= 8 for choice in found.fits)
    assert "before any KV cache" in one(found.rejected, 8, 1, "none", "none").reasons[0]
    # 8192 x 126 layers x 2 x 1 head x 128 = 252 MiB a sequence
    ranks = best.verdict.ranks if best.verdict else ()
    assert ranks[0].kv_token_bytes == 126 * 2 * 128


def test_a_search_is_the_plan_itself() -> None:
    """Thin models are a short cut: their ranks weigh what those of the whole model do."""
    target = Target(find_gpu("A100"), 4096, 16)
    for tp, pp, quant, kv in ((2, 4, "int4_awq", "none"), (1, 8, "none", "int8"), (4, 1, "int8", "none")):
        whole = planned(LLAMA_70B, tp_size=tp, pp_size=pp, quant=quant, kv_cache=kv)
        choice = fit(planned(LLAMA_70B), target, 8, Wanted(quant=quant, kv_cache=kv))
        verdict = one((*choice.fits, *choice.rejected), tp, pp, quant, kv).verdict
        assert verdict is not None
        full = estimate(whole, target, verdict.limits).verdict
        by_rank = {rank.rank: rank for rank in full.ranks}
        assert [by_rank[rank.rank] for rank in verdict.ranks] == list(verdict.ranks)
        assert (verdict.deciding, verdict.sequences) == (full.deciding, full.sequences)


def test_every_rejected_combination_has_a_reason() -> None:
    found = search(LLAMA_8B, "A100", 4)
    combinations = {(c.tp, c.pp, c.quant, c.kv_cache) for c in (*found.fits, *found.rejected)}
    assert len(combinations) == len(found.fits) + len(found.rejected) == 6 * 9 * 3
    assert all(choice.reasons for choice in found.rejected)
    assert "SM 89" in one(found.rejected, 1, 1, "fp8", "none").reasons[0]
    assert "of 64 sequences of 8192 tokens fit" in one(found.rejected, 1, 1, "none", "none").reasons[0]


def test_without_chunked_context_a_step_holds_the_prompt() -> None:
    """engine-build 9.2: the longest prompt is max_num_tokens where paged context attention is off."""
    found = search(LLAMA_8B, "A100", 1, context=20000, concurrency=4)
    plain = one(found.fits, 1, 1, "none", "none").verdict
    int8 = one(found.fits, 1, 1, "none", "int8").verdict
    assert plain is not None
    assert int8 is not None
    assert plain.limits.max_num_tokens == 8192
    assert int8.limits.max_num_tokens == 20480


def test_tp_that_does_not_divide_is_rejected_by_the_planner() -> None:
    config = {**LLAMA_8B, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128}
    found = search(config, "H100", 3, concurrency=1)
    assert "tp 3 does not divide 8 key/value heads" in " ".join(one(found.rejected, 3, 1, "none", "none").reasons)


def test_more_stages_than_layers() -> None:
    config = {**LLAMA_8B, "num_hidden_layers": 2}
    found = search(config, "H100", 4, concurrency=1)
    assert one(found.rejected, 1, 4, "none", "none").reasons == ("pp 4 is more than the 2 layers",)


def test_fewer_gpus_with_a_smaller_model_and_the_limits_count() -> None:
    small = search(document()["models"]["Qwen2.5-Coder-0.5B"], "L4", 2, concurrency=8)
    assert (small.fits[0].gpus, small.fits[0].quant, small.fits[0].kv_cache) == (1, "none", "none")
    tight = replace(find_gpu("L4"), memory_gib=3.0)
    again = fit(planned(document()["models"]["Qwen2.5-Coder-0.5B"]), Target(tight, 8192, 8), 1)
    best = again.fits[0].verdict
    assert best is not None
    assert best.sequences >= 8


@pytest.mark.parametrize("name", CASES)
def test_described_headers_are_those_that_transformers_writes(name: str, tmp_path: Path) -> None:
    make_model(CASES[name], tmp_path)
    real = read_index(tmp_path)
    config = load_config(tmp_path)
    specs = read_specs(config)
    names = dict.fromkeys(real, "model.safetensors")
    told = described_index(specs, names)
    ignored = {tensor for tensor, info in told.items() if info.shape == ()}
    assert {t: told[t].shape for t in real if t not in ignored} == {t: real[t].shape for t in real if t not in ignored}
    assert all("bias" in t or "masked" in t or "inv_freq" in t for t in ignored)


def test_a_folder_with_an_index_alone_is_planned(llama_folder: Path, tmp_path: Path) -> None:
    whole = json.loads(trtbuild("plan", llama_folder, "--tp", 2, "--json").stdout)
    bare(tmp_path, json.loads((llama_folder / "config.json").read_text()), list(read_index(llama_folder)))
    done = trtbuild("plan", tmp_path, "--tp", 2, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ranks"] == whole["ranks"]
    assert "has no weights" in told["warnings"][0]
    refused = trtbuild("checkpoint", tmp_path, "-o", tmp_path / "out")
    assert refused.returncode == 3
    assert "is missing" in refused.stderr


def bare(folder: Path, config: dict[str, Any], names: list[str]) -> None:
    """config.json and an index whose shards are not there."""
    (folder / "config.json").write_text(json.dumps(config))
    table = {name: f"model-{number % 3:05d}-of-00003.safetensors" for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def test_missing_names_of_an_index_are_found(tmp_path: Path) -> None:
    names = list(described_index(read_specs(LLAMA_8B)))
    bare(tmp_path, LLAMA_8B, [n for n in names if n != "model.norm.weight"] + ["extra.weight"])
    done = trtbuild("plan", tmp_path, "--json")
    assert done.returncode == 3
    problems = "\n".join(json.loads(done.stdout)["problems"])
    assert "missing tensors: model.norm.weight" in problems
    assert "unexpected tensors, which llama has no place for: extra.weight" in problems


def test_the_command_prints_what_it_found(tmp_path: Path) -> None:
    bare(tmp_path, LLAMA_8B, list(described_index(read_specs(LLAMA_8B))))
    run = CliRunner()
    plain = run.invoke(app, ["plan", str(tmp_path), "--json"])
    assert "sizing" not in json.loads(plain.stdout)
    args = ["plan", str(tmp_path), "--gpu", "h100", "--context", "8192", "--concurrency", "40", "--json"]
    done = run.invoke(app, args)
    assert done.exit_code == 0, done.output
    sizing = json.loads(done.stdout)["sizing"]
    assert sizing["gpu"]["name"] == "H100-SXM"
    (rank,) = sizing["ranks"]
    # 16060522496 bytes of weights (published), and 8192 positions of 128 channels in float32
    assert rank["weights"] == 16060522496 + 4 * 8192 * 128
    assert rank["kv_token_bytes"] == 131072
    free = sizing["gpu"]["memory_bytes"] - rank["fixed"]
    assert rank["kv_tokens"] == int(0.9 * free) // 131072 // 32 * 32
    assert sizing["sequences"] == rank["kv_tokens"] // 8192
    table = run.invoke(app, args[:-1])
    assert f"{sizing['sequences']} sequences of 8192 tokens fit at once" in table.stdout


def test_what_does_not_fit_exits_3_with_the_numbers(tmp_path: Path) -> None:
    bare(tmp_path, LLAMA_70B, list(described_index(read_specs(LLAMA_70B))))
    done = trtbuild("plan", tmp_path, "--gpu", "L40S")
    assert done.returncode == 3
    assert "before any KV cache; L40S has 44.39 GiB" in done.stderr
    none = trtbuild("plan", tmp_path, "--gpu", "L40S", "--fit", "--gpus", 1, "--json")
    assert none.returncode == 3
    assert "no layout serves 64 sequences of 8192 tokens on up to 1 x L40S" in none.stderr
    document = json.loads(none.stdout)
    assert document["fits"] == []
    assert all(choice["reasons"] for choice in document["rejected"])


def test_a_proposal_holds_when_it_is_planned(tmp_path: Path) -> None:
    bare(tmp_path, LLAMA_70B, list(described_index(read_specs(LLAMA_70B))))
    run = CliRunner()
    base = ["plan", str(tmp_path), "--gpu", "H100", "--context", "4096", "--concurrency", "100"]
    best = json.loads(run.invoke(app, [*base, "--fit", "--json"]).stdout)["fits"][0]
    options = {"--tp": best["tp"], "--pp": best["pp"], "--quant": best["quant"], "--kv-cache": best["kv_cache"],
               "--max-batch-size": best["limits"]["max_batch_size"],
               "--max-num-tokens": best["limits"]["max_num_tokens"]}  # fmt: skip
    done = run.invoke(app, [*base, "--json", *(str(part) for pair in options.items() for part in pair)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sizing"]["sequences"] == best["sequences"]


def test_options_of_sizing_need_a_gpu(tmp_path: Path) -> None:
    done = trtbuild("plan", tmp_path, "--fit")
    assert done.returncode == 2
    assert "needs --gpu NAME" in done.stderr
    typo = trtbuild("plan", tmp_path, "--gpu", "H10")
    assert typo.returncode == 2
    assert "did you mean H100-SXM" in typo.stderr.replace("\n", " ")


def test_every_method_that_trtbuild_makes_is_tried() -> None:
    assert set(QUANTS) == {name for name, method in METHODS.items() if not method.imported}


def test_what_is_given_is_kept_to(tmp_path: Path) -> None:
    """tp, pp, batch, step, length and KV share restrict the search; each judged combination has them."""
    bare(tmp_path, LLAMA_8B, list(described_index(read_specs(LLAMA_8B))))
    base = ["plan", str(tmp_path), "--gpu", "H100", "--context", "2048", "--fit", "--json"]
    fixed = ["--tp", "2", "--pp", "2", "--max-batch-size", "40", "--max-num-tokens", "3000", "--max-seq-len", "4000"]
    run = CliRunner()
    done = run.invoke(app, [*base, *fixed, "--kv-fraction", "0.5", "--kv-cache", "none"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    choices = [*found["fits"], *found["rejected"]]
    assert {(c["tp"], c["pp"], c["kv_cache"]) for c in choices} == {(2, 2, "none")}
    limits = [choice["limits"] for choice in choices if "limits" in choice]
    assert limits
    for each in limits:
        assert (each["max_batch_size"], each["max_num_tokens"], each["max_seq_len"]) == (40, 3000, 4000)
        assert each["kv_fraction"] == 0.5
    half = next(c["sequences"] for c in found["fits"] if c["quant"] == "none")
    whole = json.loads(run.invoke(app, [*base, *fixed, "--kv-fraction", "0.99", "--kv-cache", "none"]).stdout)
    assert next(c["sequences"] for c in whole["fits"] if c["quant"] == "none") > 1.9 * half
    one = run.invoke(app, [*base, "--pp", "4"])
    assert {(c["tp"], c["pp"]) for c in json.loads(one.stdout)["fits"]} == {(1, 4), (2, 4)}
    short = run.invoke(app, [*base, "--max-seq-len", "1000"])
    assert "max_seq_len 1000 is below the context of 2048 tokens" in str(short.exception)
    many = run.invoke(app, [*base, "--tp", "8", "--pp", "2"])
    assert "tp 8 x pp 2 takes 16 GPUs, and 8 may be used" in str(many.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--gpus 4 --kv-fraction 0.5", "--gpus and --kv-fraction need --gpu NAME"),
        ("--max-batch-size 4", "--max-batch-size needs --gpu NAME"),
        ("--max-num-tokens 4", "--max-num-tokens needs --gpu NAME"),
        ("--release 1.2.1", "--release needs --gpu NAME"),
        ("--gpu H100 --gpus 4", "--gpus needs --fit"),
        ("--gpu H100 --fit --moe-tp 1", "--moe-tp cannot go with --fit"),
        ("--gpu H100 --target llmapi", "--target llmapi has no --gpu"),
        ("--gpu A100 --sm 90", "--sm 90 is not the A100-SXM-80GB's, which is 80"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(words: str, said: str, tmp_path: Path) -> None:
    done = trtbuild("plan", tmp_path, *words.split())
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_context_beyond_the_model_warns(tmp_path: Path) -> None:
    """As `trtbuild engine` does: 8192 positions, or four times that with YaRN's factor of 4; never by default."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    target = Target(find_gpu("A100"), 131072, 2)
    for config, made_for in ((LLAMA_8B, 8192), ({**LLAMA_8B, "rope_scaling": yarn}, 32768)):
        plan = planned(config)
        for length, beyond in ((made_for, False), (made_for + 1, True)):
            limits = Limits(2, 8192, length)
            said = estimate(plan, replace(target, context=length), limits).verdict.warnings
            assert any(f"beyond the {made_for} that the model was made for" in text for text in said) == beyond
        found = fit(plan, target, 2)
        assert all("131072 tokens are beyond" in " ".join(c.verdict.warnings) for c in found.fits if c.verdict)
    bare(tmp_path, LLAMA_8B, list(described_index(read_specs(LLAMA_8B))))
    done = trtbuild("plan", tmp_path, "--gpu", "A100", "--context", 131072)
    assert done.returncode == 0
    assert "131072 tokens are beyond the 8192" in " ".join(done.stderr.split())
    assert "are beyond" not in trtbuild("plan", tmp_path, "--gpu", "A100").stderr


def test_learned_positions_end() -> None:
    plan = planned(document()["models"]["gpt2"])
    target = Target(find_gpu("A10"), 2048, 1)
    (text,) = estimate(plan, target, Limits(1, 2048, 2048)).verdict.problems
    assert text == "2048 tokens are beyond the 1024 that the model was made for: it has no more positions"


@pytest.mark.parametrize("extra", [[], ["--quant", "fp8", "--kv-cache", "fp8", "--gpu", "H100"]], ids=["plain", "fp8"])
def test_405_billion_parameters_take_less_than_a_second(extra: list[str], tmp_path: Path) -> None:
    """Of processor time, which a busy machine does not stretch; scripts/bench_plan.py measures the whole command."""
    bare(tmp_path, LLAMA_405B, list(described_index(read_specs(LLAMA_405B))))
    run = CliRunner()
    taken = []
    for _ in range(3):
        start = time.process_time()
        done = run.invoke(app, ["plan", str(tmp_path), "--tp", "8", *extra])
        taken.append(time.process_time() - start)
        assert done.exit_code == 0, done.output
    assert min(taken) < 1.0


def test_limits_are_those_of_trtllm_build() -> None:
    """engine-build 2.2 and 2.3: the defaults of trtllm-build 1.2.1, and 90 % of what is free (9.2)."""
    assert Limits().max_batch_size == 2048
    assert Limits().max_num_tokens == 8192
    assert (Limits().tokens_per_block, Limits().kv_fraction) == (32, 0.9)
