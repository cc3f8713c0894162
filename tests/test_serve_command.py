"""Command lines of every mode against the launcher's own (triton-repo 11), and what is refused before a start."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import trtbuild
from tests.triton_stand_in import repository
from trtbuild.serve.checks import conflicts, lacks
from trtbuild.serve.command import Launch, TritonInstall, connect_host, exported_names, make_launch, server_environment
from trtbuild.serve.facts import EngineModel, Machine, Repository, first_host, hostfile_slots, numbers
from trtbuild.serve.logs import open_logs, telling_lines
from trtbuild.serve.options import Hosts, ServeOptions
from trtbuild.serve.watch import backoff_s

TRITON = TritonInstall(Path("/opt/tritonserver/bin/tritonserver"))
LEADER = EngineModel("tensorrt_llm", "tensorrt", Path("/e"), 2)
MODELS = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm")
STEPS = {"ensemble": ("preprocessing", "tensorrt_llm", "postprocessing")}
OPTIONS = ServeOptions(http_port=1, grpc_port=2, metrics_port=3, exit_timeout_s=30)
PROGRAMS = frozenset({"mpirun", "srun", LEADER.worker})


def of(*engines: EngineModel, **changes: Any) -> Repository:
    return replace(Repository(Path("/r"), MODELS, engines or (LEADER,), STEPS), **changes)


def launch(
    facts: Repository, options: ServeOptions = OPTIONS, hosts: Hosts | None = None, machine: Machine | None = None
) -> Launch:
    hosts = hosts or Hosts()
    exported = exported_names({}, options)
    return make_launch(
        TRITON, facts, options, hosts, machine or Machine(), log_dir=Path("/l"), as_root=True, exported=exported
    )


def test_leader_mode_is_upstreams_line() -> None:
    made = launch(of())
    assert " ".join(made.plain) == (
        "mpirun --allow-run-as-root --oversubscribe"
        " -n 1 /opt/tritonserver/bin/tritonserver --model-repository=/r --exit-timeout-secs=30"
        " --grpc-port=2 --http-port=1 --metrics-port=3"
        " --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1"
        " --disable-auto-complete-config --backend-config=python,shm-region-prefix-name=prefix0_ :"
        " -n 1 /opt/tritonserver/bin/tritonserver --model-repository=/r --exit-timeout-secs=30"
        " --grpc-port=2 --http-port=1 --metrics-port=3"
        " --model-control-mode=explicit --load-model=tensorrt_llm"
        " --disable-auto-complete-config --backend-config=python,shm-region-prefix-name=prefix1_ :"
    )
    assert (made.servers, made.mode, made.environment) == (2, "leader", {})
    assert made.logs == ("launcher.log", "rank0.log", "rank1.log")


def test_the_logs_of_ranks_change_nothing_of_the_line() -> None:
    """Each rank is the same program, behind a shell that names its log."""
    made = launch(of())
    argv = list(made.argv)
    while "/bin/sh" in argv:
        at = argv.index("/bin/sh")
        assert argv[at + 1] == "-c"
        assert argv[at + 3 : at + 5] == ["rank", "/l"]
        del argv[at : at + 5]
    assert tuple(argv) == made.plain


def test_explicit_model_control() -> None:
    plain = launch(of(), replace(OPTIONS, model_control="explicit", load=("ensemble", "preprocessing"))).plain
    rank_0 = plain[: plain.index(":")]
    controls = [word for word in rank_0 if word.startswith(("--model-control", "--load"))]
    assert controls == ["--model-control-mode=explicit", "--load-model=ensemble", "--load-model=preprocessing"]
    assert "--load-model=*" in launch(of(), replace(OPTIONS, model_control="explicit")).plain


def test_an_orchestrator_that_spawns() -> None:
    options = replace(OPTIONS, mode="orchestrator")
    made = launch(of(), options, machine=Machine(gpus=2))
    assert " ".join(made.plain) == (
        "mpirun --allow-run-as-root --oversubscribe"
        " -n 1 /opt/tritonserver/bin/tritonserver --model-repository=/r --exit-timeout-secs=30"
        " --grpc-port=2 --http-port=1 --metrics-port=3"
        " --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1"
        " --pinned-memory-pool-byte-size=0 --enable-peer-access=false"
        " --cuda-memory-pool-byte-size=0:0 --cuda-memory-pool-byte-size=1:0"
        " --disable-auto-complete-config --backend-config=python,shm-region-prefix-name=prefix0_ :"
    )
    assert made.environment == {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"}
    assert made.shown().startswith("TRTLLM_ORCHESTRATOR=1 TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=1 mpirun")


def test_an_orchestrator_that_does_not_spawn() -> None:
    """World size 1 + the ranks of all models; each loads both models."""
    context = EngineModel("context", "tensorrt", Path("/e"), 2, participant_ids=((1, 2),))
    generation = EngineModel("generation", "tensorrt", Path("/e"), 1, participant_ids=((3,),))
    facts = of(context, generation, models=("context", "generation"), steps={})
    options = replace(OPTIONS, mode="orchestrator", spawn=False)
    assert conflicts(facts, options, Hosts()) == []
    made = launch(facts, options)
    assert made.servers == 4
    assert made.environment["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "0"
    assert (
        " ".join(made.plain).count(" --model-control-mode=explicit --load-model=context --load-model=generation ") == 3
    )
    assert not [word for word in made.plain if "memory-pool" in word]


def test_several_hosts() -> None:
    hosts = Hosts(hostfile=Path("/h"))
    plain = launch(of(), hosts=hosts).plain
    variables = "PATH PYTHONPATH LD_LIBRARY_PATH PYTHONUNBUFFERED TRTBUILD_RUN_DIR TRTBUILD_LOG_DIR TRTBUILD_SERVER"
    each = " ".join(f"-x {name}" for name in variables.split())
    begin = f"mpirun --allow-run-as-root --hostfile /h {each} -n 1 /opt/tritonserver/bin/tritonserver "
    assert " ".join(plain).startswith(begin)
    assert f": {each} -n 1 /opt" in " ".join(plain)
    machine = Machine(slots={"gpu1": 8, "gpu2": 8})
    assert connect_host(OPTIONS, hosts, machine) == "127.0.0.1"
    assert connect_host(replace(OPTIONS, host="0.0.0.0"), hosts, machine) == "gpu1"
    here = replace(machine, names=frozenset({"gpu1"}))
    assert connect_host(replace(OPTIONS, host="0.0.0.0"), hosts, here) == "127.0.0.1"


@pytest.mark.parametrize("rank", [0, 1])
def test_slurm(rank: int, tmp_path: Path) -> None:
    """What a task makes of its line, asked of the shell."""
    triton = tmp_path / "tritonserver"
    triton.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    triton.chmod(0o755)
    made = make_launch(TritonInstall(triton), of(), OPTIONS, Hosts(slurm=True), Machine(), log_dir=tmp_path)
    assert made.plain[:5] == ("srun", "--mpi=pmix", "--overlap", "--kill-on-bad-exit=1", "--ntasks=2")
    own = ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"]
    worker = ["--model-control-mode=explicit", "--load-model=tensorrt_llm"]
    expected = [
        "--model-repository=/r",
        "--exit-timeout-secs=30",
        *("--grpc-port=2", "--http-port=1", "--metrics-port=3"),
        *(worker if rank else own),
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name=prefix{rank}_",
    ]
    environment = {"SLURM_PROCID": str(rank), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(made.plain[5:], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == expected
    subprocess.run(made.argv[5:], env=environment, check=True)
    assert (tmp_path / f"rank{rank}.log").read_text().splitlines() == expected


def test_llmapi() -> None:
    """Its ranks are its own; Triton itself waits for requests, as no counter tells of them."""
    facts = of(EngineModel("tensorrt_llm", "llmapi", backend="python"))
    assert launch(facts).plain[0] == "/opt/tritonserver/bin/tritonserver"
    assert "--exit-timeout-secs=30" in launch(facts, replace(OPTIONS, exit_timeout_s=1, drain_s=30.0)).plain
    beside = of(CPU, EngineModel("hf", "llmapi", backend="python"), models=(*MODELS, "hf"))
    assert "--exit-timeout-secs=31" in launch(beside, replace(OPTIONS, exit_timeout_s=1, drain_s=30.5)).plain
    assert launch(facts, hosts=Hosts(slurm=True)).plain[:3] == ("srun", "--mpi=pmix", "trtllm-llmapi-launch")


def test_the_cpu_command_listens_on_loopback() -> None:
    facts = of(EngineModel("tensorrt_llm", "cpu", Path("/e"), 2, backend="python"))
    made = make_launch(
        TritonInstall(Path("/t"), Path("/b")), facts, ServeOptions(), Hosts(), Machine(), log_dir=Path("/l")
    )
    assert made.argv == made.plain
    assert [a for a in made.argv if "address" in a] == [
        f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")
    ]
    assert "--backend-directory=/b" in made.argv
    assert "mpirun" not in made.argv


def test_no_rank_is_bound_to_a_core() -> None:
    made = server_environment(
        {},
        TRITON,
        launch(of()),
        mark="m",
        run_dir=Path("/run"),
        log_dir=Path("/l"),
        python_bin=Path("/bin"),
        import_dirs=(),
    )
    assert made["PRTE_MCA_hwloc_default_binding_policy"] == made["OMPI_MCA_hwloc_base_binding_policy"] == "none"


CPU = EngineModel("tensorrt_llm", "cpu", Path("/e"), 2, backend="python")
IDS = replace(LEADER, participant_ids=((1, 2),))


@pytest.mark.parametrize(
    ("facts", "changes", "hosts", "words"),
    [
        (of(models=("a",), engines=(), steps={}), {}, Hosts(), "none of the models a runs an engine"),
        (of(recorded_world=4), {}, Hosts(), "made for 4 rank(s), but its engine /e has 2"),
        (of(replace(LEADER, problem="gone")), {}, Hosts(), "gone"),
        (of(), {"load": ("ensemble",)}, Hosts(), "needs model control explicit"),
        (of(), {"load": ("ensembel",), "model_control": "explicit"}, Hosts(), "did you mean ensemble?"),
        (of(), {"restart": "always"}, Hosts(), "never, on-failure or on-failure:N, not 'always'"),
        (of(), {"restart": "on-failure:0"}, Hosts(), "not 'on-failure:0'"),
        (of(), {"watch_s": 0.5}, Hosts(), "watch_s is 0.5"),
        (of(), {"drain_s": -1.0}, Hosts(), "drain_s is -1"),
        (of(), {"grpc_port": 1}, Hosts(), "ports must differ"),
        (of(), {"spawn": False}, Hosts(), "only an orchestrator spawns"),
        (of(), {}, Hosts(Path("/h"), True), "a hostfile is for mpirun"),
        (of(CPU), {"mode": "orchestrator"}, Hosts(), "a cpu engine has one tritonserver"),
        (of(CPU), {}, Hosts(slurm=True), "a cpu engine has one tritonserver"),
        (of(CPU, LEADER), {}, Hosts(), "engines of cpu and tensorrt"),
        (of(LEADER, replace(LEADER, name="b"), models=(*MODELS, "b")), {}, Hosts(), "leader mode runs one engine"),
        (of(replace(LEADER, participant_ids=((0, 1, 2),))), {}, Hosts(), "participant_ids has 3 ranks, the engine 2"),
        (of(replace(LEADER, gpu_device_ids=((0, 1, 2),))), {}, Hosts(), "gpu_device_ids has 3 GPUs on each of 1"),
        (of(IDS), {"mode": "orchestrator"}, Hosts(), "must not be set where the orchestrator spawns"),
        (of(), {"mode": "orchestrator"}, Hosts(slurm=True), "on its own host only"),
        (of(), {"mode": "orchestrator", "spawn": False}, Hosts(), "participant_ids must say which ranks"),
        (
            of(replace(LEADER, participant_ids=((0, 1),))),
            {"mode": "orchestrator", "spawn": False},
            Hosts(),
            "rank 0, which is the orchestrator's",
        ),
        (
            of(replace(LEADER, participant_ids=((2, 3),))),
            {"mode": "orchestrator", "spawn": False},
            Hosts(),
            "must be 1 to 2, each once, not [2, 3]",
        ),
        (
            of(replace(IDS, backend="python")),
            {"mode": "orchestrator", "spawn": False},
            Hosts(),
            "only the C++ backend can do without spawning",
        ),
    ],
)
def test_conflicts(facts: Repository, changes: dict[str, Any], hosts: Hosts, words: str) -> None:
    found = conflicts(facts, replace(OPTIONS, **changes), hosts)
    assert [problem for problem in found if words in problem], found


def test_nothing_speaks_against_what_works() -> None:
    assert conflicts(of(), OPTIONS, Hosts()) == []
    assert lacks(of(), OPTIONS, Hosts(), Machine(gpus=2, programs=PROGRAMS)) == []
    one = replace(OPTIONS, load=("ensemble",), model_control="explicit")
    assert conflicts(of(LEADER, replace(LEADER, name="b"), models=(*MODELS, "b")), one, Hosts()) == []


@pytest.mark.parametrize(
    ("changes", "hosts", "machine", "words"),
    [
        ({}, Hosts(), Machine(gpus=1, programs=PROGRAMS), "2 ranks, but this host has 1 GPU(s)"),
        ({}, Hosts(), Machine(programs=PROGRAMS), "no GPU: nvidia-smi does not answer"),
        ({}, Hosts(), Machine(gpus=2), "mpirun was not found"),
        ({}, Hosts(Path("/h")), Machine(slots={"a": 1}, programs=PROGRAMS), "hostfile /h has 1 slot(s)"),
        ({}, Hosts(Path("/h")), Machine(programs=PROGRAMS), "cannot be read, or names no host"),
        ({}, Hosts(slurm=True), Machine(programs=PROGRAMS), "no Slurm allocation"),
        (
            {},
            Hosts(slurm=True),
            Machine(programs=PROGRAMS, slurm={"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}),
            "2 ranks, but the Slurm allocation has 1 task(s)",
        ),
        (
            {"mode": "orchestrator"},
            Hosts(),
            Machine(gpus=2, programs=frozenset({"mpirun"})),
            "spawned ranks is missing",
        ),
    ],
)
def test_what_a_machine_lacks(changes: dict[str, Any], hosts: Hosts, machine: Machine, words: str) -> None:
    found = lacks(of(), replace(OPTIONS, **changes), hosts, machine)
    assert [problem for problem in found if words in problem], found


def test_hosts_and_numbers() -> None:
    assert hostfile_slots("# hosts\na slots=4 max_slots=8\n\nb\na slots = 2 # more\n") == {"a": 6, "b": 1}
    lists = ("n1", "n[03-05,9],m", "gpu-a,gpu-b", "rack[1-2]-x,m", "")
    assert [first_host(text) for text in lists] == ["n1", "n03", "gpu-a", "rack1-x", ""]
    assert numbers("0,1;2,3") == ((0, 1), (2, 3))
    assert numbers("") == numbers("x") == ()
    assert [ServeOptions(restart=text).restarts for text in ("never", "on-failure", "on-failure:12")] == [0, 5, 12]
    assert [backoff_s(n) for n in (1, 2, 3, 6, 60)] == [1, 2, 4, 30, 30]


def test_log_tails_leave_out_tables_and_noise() -> None:
    log = "I1122 15:0 1 x] hello\n| table |\n+---+\nE1122 15:0 1 m.cc:1] boom\nerror: creating server\nDCGM unable\n"
    assert telling_lines(log) == ["E1122 15:0 1 m.cc:1] boom", "error: creating server"]


def test_logs_of_before_are_put_aside_the_last_few_of_them(tmp_path: Path) -> None:
    """Also those of a cpu engine's ranks; what is not of a server stays as it is."""
    folder = tmp_path / "tensorrt_llm.1"
    folder.mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    for number in range(1, 9):
        for path in (tmp_path / "tritonserver.log", folder / "rank0.log"):
            path.write_text(str(number))
        open_logs(tmp_path)
    for path in (tmp_path / "tritonserver.log", folder / "rank0.log"):
        assert {kept.name: kept.read_text() for kept in path.parent.glob(f"{path.name}*")} == {
            f"{path.name}.{number}": str(number) for number in range(4, 9)
        }
    open_logs(tmp_path)
    assert (tmp_path / "tritonserver.log.4").is_file(), "nothing is new"
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_dry_run_and_all_problems_at_once(tmp_path: Path) -> None:
    folder = repository(tmp_path, tp=2, pp=2)
    done = trtbuild("serve", folder, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["servers"] == 4
    assert [word for word in shown["command"] if "prefix-name" in word] == [
        f"--backend-config=python,shm-region-prefix-name=prefix{rank}_" for rank in range(4)
    ]
    assert any("nvidia-smi" in sentence or "GPU" in sentence for sentence in shown["missing"])
    (tmp_path / "engine" / "rank3.engine").unlink()
    refused = trtbuild("serve", folder, "--no-spawn", "--restart", "often", "--load", "x", "--slurm")
    assert refused.returncode == 3
    for words in ("lacks rank3.engine", "leader mode never does", "'often'", "no model x", "no Slurm allocation"):
        assert words in refused.stderr
    assert "Traceback" not in refused.stderr
