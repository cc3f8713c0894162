"""`trtbuild engine --target tensorrt` on GPUs that could not serve what it would build (engine-build 12.6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.published import plan_of
from tests.tiny import trtbuild
from tests.trt import LIMITS, OPTIONS
from trtbuild.checkpoint.pack import configs_of
from trtbuild.engine.options import BuildOptions, LaunchOptions
from trtbuild.engine.tensorrt.build_config import plan_build
from trtbuild.errors import PlanError
from trtbuild.pipeline import plan_engine
from trtbuild.sizing.memory import rank_memories
from trtbuild.sizing.room import engine_room, file_weights
from trtbuild.sizing.target import Limits

Patch = pytest.MonkeyPatch
GIB = 1 << 30
PARAMETERS = 8_030_261_248  # of Llama-3-8B, as its model card says
TOKEN = 128 << 10  # bytes of its KV cache: 32 layers x 2 x 8 heads x 128 channels x 2 bytes (engine-build 9.2)


def config_of(model: str, **options: Any) -> dict[str, Any]:
    part = plan_of(model, **options).parts[0]
    return dict(configs_of(part.family, part.spec, part.options, part.choices)["config.json"])


def built(config: dict[str, Any], **limits: Any) -> dict[str, Any]:
    """build_config as it would be saved."""
    options = BuildOptions(**{"max_batch_size": 8, "max_num_tokens": 2048, **limits})
    return plan_build(options, config, 89).effective


def test_llama_3_8b_and_one_sequence() -> None:
    """Its weights take 14.96 GiB in bfloat16: 8192 tokens (1 GiB) fit into 24 GiB beside them, 131072 do not."""
    config = config_of("Llama-3-8B")
    weights = [2 * PARAMETERS]
    assert engine_room(config, weights, built(config, max_seq_len=8192), "L4", 24 * GIB) == ([], [])
    (problem,), warnings = engine_room(config, weights, built(config, max_seq_len=131072), "L4", 24 * GIB)
    assert problem.startswith("0 of 1 sequences of 131072 tokens fit: rank 0 has ")
    assert problem.endswith("one sequence takes 16.00 GiB")
    assert warnings == []
    (problem,), _ = engine_room(config, weights, built(config, max_seq_len=128), "A10", 14 * GIB)
    assert problem.endswith("before any KV cache; A10 has 14.00 GiB")


def test_what_fits_only_if_the_cache_takes_all_is_a_warning() -> None:
    config = config_of("Llama-3-8B")
    limits = Limits(max_batch_size=8, max_num_tokens=2048, max_seq_len=8192)
    (rank,) = rank_memories(plan_of("Llama-3-8B").parts[0], limits)
    memory = rank.fixed + 8192 * TOKEN
    effective = built(config, max_seq_len=8192)
    weights = [2 * PARAMETERS]
    assert engine_room(config, weights, effective, "X", memory - (64 << 20))[0]
    problems, (warning,) = engine_room(config, weights, effective, "X", memory + (64 << 20))
    assert problems == []
    assert warning.startswith("of what is free, the KV cache usually gets 90%: 0 of 1 sequences of 8192 tokens fit")
    assert engine_room(config, weights, effective, "X", rank.fixed + 8192 * TOKEN * 10 // 9 + (64 << 20)) == ([], [])


@pytest.mark.parametrize(
    "options",
    [
        {"tp_size": 2},
        {"pp_size": 2},
        {"quant": "fp8", "kv_cache": "fp8"},
        {"quant": "int4_awq", "tp_size": 4},
        {"quant": "int8_sq"},
    ],
)
def test_the_same_memory_as_by_the_plan(options: dict[str, Any]) -> None:
    """A checkpoint's config.json is all that there is of one that was made elsewhere."""
    from trtbuild.sizing.room import _memories

    part = plan_of("Llama-3-8B", **options).parts[0]
    limits = Limits(max_batch_size=8)
    wanted = rank_memories(part, limits)
    config = config_of("Llama-3-8B", **options)
    rope = wanted[0].weights - _memories(config, [0] * len(wanted), limits)[0].weights
    assert rope > 0
    table = _memories(config, [0] * len(wanted), limits)[0].weights
    assert _memories(config, [rank.weights - table for rank in wanted], limits) == wanted


def test_weights_that_the_build_packs_and_engines_of_other_kinds() -> None:
    assert file_weights({"quantization": {"quant_algo": "W4A16"}}, [400]) == [100]
    assert file_weights({"quantization": {"quant_algo": "W4A16_AWQ"}}, [400]) == file_weights({}, [400]) == [400]
    config = config_of("Llama-3-8B")
    for change in ({"weight_streaming": True}, {"kv_cache_type": "disabled"}):
        assert engine_room(config, [2 * PARAMETERS], {**built(config), **change}, "X", GIB) == ([], [])


@pytest.mark.parametrize("source", ["model", "checkpoint"])
def test_the_command_refuses_before_anything_is_made(
    source: str, llama_folder: Path, trt_checkpoint: Path, tmp_path: Path, stand_in: Patch
) -> None:
    """CUDA, cuBLAS and kernels take more than 300 MiB by themselves; of a GPU without a size nothing is said."""
    stand_in.setenv("TRTBUILD_FAKE_MEMORY", "300")
    model = trt_checkpoint if source == "checkpoint" else llama_folder
    words = ["engine", model, "-o", tmp_path / "out", "--target", "tensorrt", "--max-seq-len", "128"]
    for more in ((), ("--dry-run",)):
        refused = trtbuild(*words, *more)
        assert refused.returncode == 3
        assert "before any KV cache; Stand-in GPU has 0.29 GiB" in refused.stderr
        assert "Lower max_seq_len, max_batch_size or max_num_tokens" in refused.stderr
    assert not list(tmp_path.iterdir())
    for memory in ("[N/A]", "24000"):
        stand_in.setenv("TRTBUILD_FAKE_MEMORY", memory)
        assert trtbuild(*words, "--dry-run").returncode == 0


def test_gpus_of_other_hosts_are_not_judged_by_those_here(
    trt_checkpoint: Path, tmp_path: Path, stand_in: Patch
) -> None:
    stand_in.setenv("TRTBUILD_FAKE_MEMORY", "300")
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    with pytest.raises(PlanError):
        plan_engine(str(trt_checkpoint), OPTIONS, LIMITS, LaunchOptions())
    assert not plan_engine(str(trt_checkpoint), OPTIONS, LIMITS, LaunchOptions(hostfile=hosts)).room


def test_a_warning_is_shown(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    """On the smallest GPU that is not refused, in MiB as nvidia-smi counts."""
    limits = BuildOptions(max_batch_size=1, max_seq_len=400000)
    effective = plan_engine(str(trt_checkpoint), OPTIONS, limits, LaunchOptions()).parts[""].plan.effective
    config = json.loads((trt_checkpoint / "config.json").read_text())
    weights = [path.stat().st_size for path in trt_checkpoint.glob("rank*.safetensors")]
    fits = (mib for mib in range(1000, 3000) if not engine_room(config, weights, effective, "X", mib << 20)[0])
    stand_in.setenv("TRTBUILD_FAKE_MEMORY", str(next(fits)))
    words = ["engine", trt_checkpoint, "-o", tmp_path / "out", "--target", "tensorrt", "--max-seq-len", "400000"]
    words += ["--max-batch-size", "1", "--dry-run"]
    assert "warning: of what is free, the KV cache usually gets 90%" in trtbuild(*words).stderr
    stand_in.setenv("TRTBUILD_FAKE_MEMORY", "24000")
    assert "usually gets" not in trtbuild(*words).stderr
