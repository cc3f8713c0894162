"""What is started: argument vectors, launchers, shares of ranks, GPUs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trtbuild.engine.options import BuildOptions, LaunchOptions, LoraOptions, PluginOptions
from trtbuild.engine.tensorrt.command import launcher_of, make_job, processes_of, shares, trtllm_program
from trtbuild.engine.tensorrt.gpus import Gpu, parse_gpus, shown, visible_gpus
from trtbuild.errors import PlanError
from trtbuild.mpi import who_failed

LOGS = Path("/out/logs")


def job(launch: LaunchOptions, launcher: str, processes: int = 2) -> list[str]:
    made = make_job(
        ["prog", "arg"],
        shares(range(processes), processes),
        launcher,
        launch,
        LOGS,
        Path("/out/ticks"),
        mpirun="mpirun",
        srun="srun",
        as_root=True,
        exported=("PATH",),
    )
    words = list(made.argv)
    words[words.index("-c") + 1] = "SCRIPT"
    return words


SHELL = ["/bin/sh", "-c", "SCRIPT", "/out/logs", "/out/ticks", "5", "prog", "arg"]


def test_argument_vectors() -> None:
    local = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2", *SHELL]
    assert job(LaunchOptions(), "mpirun") == local
    hosts = ["mpirun", "--allow-run-as-root", "--hostfile", "/h", "-x", "PATH", "--bind-to", "none", "-n", "2", *SHELL]
    assert job(LaunchOptions(hostfile=Path("/h")), "mpirun") == hosts
    slurm = ["srun", "--mpi=pmix", "--overlap", "--kill-on-bad-exit=1", "--ntasks=2", *SHELL]
    assert job(LaunchOptions(), "srun") == slurm
    assert job(LaunchOptions(), "none", 1) == SHELL
    assert job(LaunchOptions(hang_s=0), "none", 1)[5] == "0"
    assert job(LaunchOptions(hang_s=2), "none", 1)[5] == "0.5"


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"])
def test_each_process_has_a_log_and_its_ticks(tmp_path: Path, variable: str) -> None:
    """A real shell runs the script, whoever gave the number; the exit code is the program's."""
    work = "echo out; echo err >&2; i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; sleep 0.6; exit 5"
    places = ((3,),) * 4
    made = make_job(
        ["sh", "-c", work],
        places,
        "mpirun",
        LaunchOptions(hang_s=1),
        tmp_path,
        tmp_path,
        mpirun="mpirun",
        srun="srun",
        as_root=True,
    )
    argv = made.argv[made.argv.index("/bin/sh") :]
    assert subprocess.run(argv, env={"PATH": os.environ["PATH"], variable: "3"}).returncode == 5
    assert (tmp_path / made.logs[3]).read_text().split() == ["out", "err"]
    assert int((tmp_path / "3").read_text()) > 0


def test_the_launcher() -> None:
    auto = LaunchOptions()
    assert launcher_of(auto, {}, srun=True, processes=2) == "mpirun"
    assert launcher_of(auto, {}, srun=True, processes=1) == "none"
    assert launcher_of(auto, {"SLURM_JOB_ID": "7"}, srun=True, processes=1) == "srun"
    assert launcher_of(auto, {"SLURM_JOB_ID": "7"}, srun=False, processes=1) == "mpirun"
    assert launcher_of(LaunchOptions(hostfile=Path("/h")), {"SLURM_JOB_ID": "7"}, srun=True, processes=8) == "mpirun"
    assert launcher_of(LaunchOptions(launcher="mpirun"), {"SLURM_JOB_ID": "7"}, srun=True, processes=8) == "mpirun"


def test_processes_and_their_ranks() -> None:
    """One a rank, at most one a GPU; rank r is of process r % M as upstream."""
    assert processes_of(LaunchOptions(), 8, 4) == 4
    assert processes_of(LaunchOptions(), 8, None) == 8
    assert processes_of(LaunchOptions(), 2, 8) == 2
    assert processes_of(LaunchOptions(processes=1), 8, 4) == 1
    assert processes_of(LaunchOptions(launcher="none"), 8, 4) == 1
    assert processes_of(LaunchOptions(hostfile=Path("/h")), 8, 4) == 8
    assert shares(range(5), 2) == ((0, 2, 4), (1, 3))
    assert shares([3, 7], 2) == ((3,), (7,))
    for launch, said in (
        (LaunchOptions(processes=3), "3 processes for 2 GPU"),
        (LaunchOptions(launcher="none", processes=2), "launcher none starts one"),
        (LaunchOptions(launcher="srun", hostfile=Path("/h")), "hostfile is for launcher mpirun"),
    ):
        with pytest.raises(PlanError, match=said):
            processes_of(launch, 4, 2)


def test_trtllm_build_gets_what_its_file_does_not_carry() -> None:
    options = BuildOptions(
        logits_dtype="float16",
        use_strip_plan=True,
        fast_build=True,
        lora_config=LoraOptions((Path("/a"), Path("/b")), "hf", ("attn_q",), 8),
        plugin_config=PluginOptions(lora_plugin="auto", gemm_plugin="disable"),
    )
    argv = trtllm_program("trtllm-build", Path("/ckpt"), Path("/bc.json"), Path("/out"), options)
    assert argv == [
        *("trtllm-build", "--checkpoint_dir", "/ckpt", "--build_config", "/bc.json", "--output_dir", "/out"),
        *("--log_level", "info", "--logits_dtype", "float16", "--gemm_plugin", "disable", "--lora_plugin", "auto"),
        *("--lora_ckpt_source", "hf", "--max_lora_rank", "8", "--lora_dir", "/a", "/b"),
        *("--lora_target_modules", "attn_q", "--strip_plan", "--fast_build"),
    ]


def test_gpus_as_a_process_of_cuda_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 9.0, 81559\n1, GPU-bbbb2222, NVIDIA L4, 8.9, [N/A]\nNo devices\n"
    gpus = parse_gpus(text)
    assert gpus[0] == Gpu(0, "GPU-aaaa1111", "NVIDIA H100 80GB HBM3", 90, 85520809984)
    assert gpus[1].memory_bytes is None
    assert [gpu.sm for gpu in gpus] == [90, 89]
    assert shown(gpus, None) == gpus
    assert [gpu.index for gpu in shown(gpus, "1,0")] == [1, 0]
    assert [gpu.index for gpu in shown(gpus, "GPU-bbbb")] == [1]
    assert [gpu.index for gpu in shown(gpus, "0,7,1")] == [0]
    assert shown(gpus, "") == []
    assert visible_gpus({"PATH": "/nowhere"}) is None


def test_who_failed_under_slurm() -> None:
    said = "srun: error: node7: task 3: Out Of Memory\nsrun: Terminating StepId=12.0\n"
    assert who_failed(said, 1, 4) == (3, "Out Of Memory")
