"""The doctor's probes: outputs as people have published them, and the real programs and files of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import ROOT
from trtbuild.doctor import nvidia_smi
from trtbuild.doctor.facts import Gpu
from trtbuild.doctor.probes import mpi as mpi_probe
from trtbuild.doctor.probes.artefact import probe_artefact
from trtbuild.doctor.probes.container import probe_container
from trtbuild.doctor.probes.gpu import probe_driver
from trtbuild.doctor.probes.host import cgroup_cpus, cgroup_memory, probe_host
from trtbuild.doctor.probes.hub import probe_hub
from trtbuild.doctor.probes.process import run
from trtbuild.doctor.probes.software import probe_software
from trtbuild.doctor.probes.triton import probe_triton

MIB, GIB = 1 << 20, 1 << 30

# github.com/triton-inference-server/server/pull/8070
TWO_GPUS = """compute_cap, compute_mode, driver_version, name, index
7.0, Default, 570.86.15, NVIDIA TITAN V, 0
8.9, Default, 570.86.15, NVIDIA RTX 5880 Ada Generation, 1
"""
# A published log of a machine with eight H100; the header renames clocks.sm.
H100 = """index, name, memory.total [MiB], clocks.current.sm [MHz], driver_version
0, NVIDIA H100 80GB HBM3, 81559 MiB, 345 MHz, 590.48.01
1, NVIDIA H100 80GB HBM3, 81559 MiB, 345 MHz, 590.48.01
"""
# DGX Spark shares the host's memory (published by several users).
GB10 = "name, memory.total [MiB], driver_version\nNVIDIA GB10, [N/A], 580.126.09\n"
# github.com/tinygrad/open-gpu-kernel-modules/issues/47
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.124\n"
# github.com/NVIDIA/TensorRT-LLM/pull/735, github.com/huggingface/candle/issues/733: driver 470
OLD = 'Field "compute_cap" is not a valid field to query.\n'
OLD_ROWS = "index, name, memory.total [MiB], driver_version\n0, Tesla V100-SXM2-16GB, 16160 MiB, 470.182.03\n"
BOX = "| NVIDIA-SMI 580.105.06    Driver Version: 580.105.06    CUDA Version: 13.0     |\n"


def test_rows_are_found_by_their_columns() -> None:
    driver = nvidia_smi.read_csv(TWO_GPUS)
    assert driver.version == "570.86.15"
    assert driver.gpus == (
        Gpu(0, "NVIDIA TITAN V", 70, compute_mode="Default"),
        Gpu(1, "NVIDIA RTX 5880 Ada Generation", 89, compute_mode="Default"),
    )
    h100 = nvidia_smi.read_csv(H100)
    assert [gpu.memory_bytes for gpu in h100.gpus] == [81559 * MIB] * 2
    assert h100.version == "590.48.01"


def test_unknown_values_stay_unknown() -> None:
    driver = nvidia_smi.read_csv(GB10)
    assert driver.gpus == (Gpu(0, "NVIDIA GB10"),)
    assert driver.version == "580.126.09"


@pytest.mark.parametrize("text", [MISMATCH, "No devices were found\n", "", OLD])
def test_messages_are_a_problem_not_gpus(text: str) -> None:
    driver = nvidia_smi.read_csv(text)
    assert driver.gpus == ()
    assert driver.problem
    assert text.split("\n")[0] in driver.problem


def test_the_box_names_the_cuda_version() -> None:
    driver = nvidia_smi.read_header(nvidia_smi.read_csv(""), BOX)
    assert (driver.cuda, driver.version) == ("13.0", "580.105.06")
    assert nvidia_smi.read_header(driver, BOX.replace("13.0", "Not Found")).cuda == "13.0"


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_an_old_nvidia_smi_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say = f"""case "$*" in
*compute_cap*) echo '{OLD.strip()}'; exit 2;;
*query-gpu*) echo '{OLD_ROWS.strip()}';;
*) echo '{BOX.strip()}';;
esac"""
    script(tmp_path, "nvidia-smi", say)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    driver = probe_driver()
    assert driver.gpus == (Gpu(0, "Tesla V100-SXM2-16GB", None, 16160 * MIB),)
    assert (driver.version, driver.cuda, driver.visible, driver.problem) == ("470.182.03", "13.0", "0", "")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("nvml", "cuda"), [(0, 0), (9, 803)])
def test_nvml_and_libcuda_are_asked_by_their_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvml: int, cuda: int
) -> None:
    flags = ["-shared", "-fPIC", f"-DNVML_CODE={nvml}", f"-DCUDA_CODE={cuda}"]
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", *flags, str(ROOT / "tests" / "fake_nvidia.c"), "-o", str(library)], check=True)
    shutil.copy(library, tmp_path / "libnvidia-ml.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    driver = probe_driver()
    assert (driver.cuda, driver.cuda_init) == ("13.1", cuda)
    if nvml:
        assert driver.gpus == ()
        assert driver.problem == "NVML: Driver Not Loaded (code 9)"
    else:
        assert driver.gpus == (Gpu(0, "NVIDIA H100 80GB HBM3", 90, 85520809984, MIB),)
        assert (driver.version, driver.nvml) == ("590.48.01", "13.590.48.01")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_no_gpu_is_a_fact_and_no_crash() -> None:
    driver = probe_driver()
    assert (driver.gpus, driver.cuda_init, driver.version) == ((), None, "")


@pytest.mark.parametrize(
    ("text", "kind", "version"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/", "Open MPI", "4.1.4"),
        ("Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11", "Open MPI", "5.0.11"),
        ("HYDRA build details:\n    Version:                                 4.0\n    Release Date: x", "MPICH", "4.0"),
        ("MPICH Version:      4.2.1\nMPICH Release date: Wed Apr 17", "MPICH", "4.2.1"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307 (id: d82b3071db)", "Intel MPI", "2021.9"),
        ("something else", "", ""),
    ],
)
def test_kinds_of_mpi(text: str, kind: str, version: str) -> None:
    assert mpi_probe.identify(text) == (kind, version)


def test_real_processes_find_each_other() -> None:
    mpi = mpi_probe.probe_mpi(3)
    assert mpi.kind == "Open MPI"
    assert mpi.hello_sizes == (3, 3, 3)
    assert mpi.library == f"Open MPI {mpi.version}"
    assert mpi.hello_problem == ""
    enough = (os.cpu_count() or 1) >= 3
    assert enough or "not enough slots" in mpi.slots_problem


def test_another_mpirun_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that mpi4py's library does not know: every process is alone."""
    every = 'while [ "$1" != -n ]; do shift; done; count=$2; shift 2\nfor _ in $(seq $count); do "$@" & done; wait'
    monkeypatch.setenv("TRTBUILD_MPIRUN", str(script(tmp_path, "mpirun", f'[ "$1" = --version ] && exit\n{every}')))
    mpi = mpi_probe.probe_mpi(2)
    assert mpi.kind == ""
    assert mpi.hello_sizes == (1, 1)


def test_an_mpirun_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTBUILD_MPIRUN", str(script(tmp_path, "mpirun", "sleep 321 & sleep 321")))
    monkeypatch.setattr(mpi_probe, "_LIMIT_S", 0.3)
    start = time.monotonic()
    assert "no answer within 0.3 s" in mpi_probe.probe_mpi(2).hello_problem
    assert time.monotonic() - start < 60
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _read(p) == b"sleep\x00321\x00"]
    assert not left


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_program_that_is_not_there_is_an_answer() -> None:
    said = run(["/nowhere/program"], 1)
    assert said.code is None
    assert "No such file" in said.text


def test_cgroup_limits_of_both_versions(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    v2 = tmp_path / "v2"
    (v2 / "pod" / "box").mkdir(parents=True)
    membership.write_text("0::/pod/box\n")
    (v2 / "pod" / "memory.max").write_text(f"{8 * GIB}\n")
    (v2 / "pod" / "memory.current").write_text(f"{GIB}\n")
    (v2 / "pod" / "box" / "memory.max").write_text("max\n")
    (v2 / "pod" / "box" / "cpu.max").write_text("150000 100000\n")
    assert cgroup_memory(membership, v2) == (8 * GIB, GIB)  # the parent's limit holds
    assert cgroup_cpus(membership, v2) == 1.5
    v1 = tmp_path / "v1"
    (v1 / "memory" / "docker" / "1").mkdir(parents=True)
    (v1 / "cpu").mkdir()
    membership.write_text("4:memory:/docker/1\n1:cpu,cpuacct:/\n0::/\n")
    (v1 / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (v1 / "memory" / "docker" / "1" / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (v1 / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (v1 / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_memory(membership, v1) == (2 * GIB, None)
    assert cgroup_cpus(membership, v1) is None


def test_this_machine_by_other_programs() -> None:
    host = probe_host()
    free = subprocess.run(["free", "-b"], capture_output=True, text=True, check=True).stdout.split("\n")[1].split()
    assert host.ram_bytes == int(free[1])
    shm = subprocess.run(["df", "-B1", "--output=size", "/dev/shm"], capture_output=True, text=True, check=True)
    assert host.shm_bytes == int(shm.stdout.split()[1])
    nproc = subprocess.run(["env", "-u", "OMP_NUM_THREADS", "nproc"], capture_output=True, text=True, check=True)
    assert host.cpus == int(nproc.stdout)
    shell = subprocess.run(["bash", "-c", "ulimit -n; ulimit -l"], capture_output=True, text=True, check=True)
    files, locked = shell.stdout.split()
    assert host.limits["nofile"] == int(files)
    assert host.limits["memlock"] == (None if locked == "unlimited" else int(locked) * 1024)
    assert {disk.purpose for disk in host.disks} == {"work", "trtbuild cache", "temporary files"}


def test_versions_are_those_that_the_packages_say() -> None:
    software = probe_software()
    for name in ("numpy", "mpi4py", "safetensors"):
        code = f"import {name}; print({name}.__version__)"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert software.packages[name] == said.stdout.strip()
    assert "tensorrt" not in software.packages
    assert software.python == ".".join(map(str, sys.version_info[:3]))


def test_a_tensorrt_wheel_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves of the wheels: their metadata, which is all that the doctor reads."""
    for name, version in (("tensorrt_llm", "1.2.1"), ("tensorrt_cu13", "10.14.1.48")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = probe_software().packages
    assert (packages["tensorrt-llm"], packages["tensorrt"]) == ("1.2.1", "10.14.1.48")


def test_variables_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `env` in nvcr.io/nvidia/tritonserver:25.02-trtllm-python-py3 prints them."""
    published = {
        "NVIDIA_PRODUCT_NAME": "Triton Server",
        "NVIDIA_TRITON_SERVER_VERSION": "25.02",
        "TRITON_SERVER_VERSION": "2.55.0",
        "CUDA_VERSION": "12.8.0.038",
        "CUDA_DRIVER_VERSION": "570.86.10",
        "TRT_VERSION": "10.8.0.43",
    }
    for name, value in published.items():
        monkeypatch.setenv(name, value)
    found = probe_container()
    assert (found.tag, found.cuda, found.driver, found.tensorrt) == ("25.02", "12.8.0.038", "570.86.10", "10.8.0.43")
    assert found.triton == "2.55.0"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/data/hf"},
        {"HF_HOME": "/data/hf", "HF_HUB_CACHE": "/data/cache"},
        {"XDG_CACHE_HOME": "/data/xdg"},
        {"HUGGINGFACE_HUB_CACHE": "/data/old"},
        {"HF_TOKEN_PATH": "/data/token", "HF_HUB_OFFLINE": "1"},
    ],
)
def test_hub_places_are_those_of_huggingface_hub(variables: dict[str, str]) -> None:
    code = """
from huggingface_hub import constants
from trtbuild.doctor.probes import hub
print(constants.HF_HUB_CACHE == str(hub.hub_cache()), constants.HF_TOKEN_PATH == str(hub.token_file()),
      constants.HF_HUB_OFFLINE == bool(hub.probe_hub().offline))
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "XDG_CACHE"))}
    env = {**clean, "PYTHONPATH": str(ROOT), **variables}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert said.stdout.split() == ["True"] * 3


def test_the_token_is_told_of_but_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert probe_hub().token == ""
    (tmp_path / "token").write_text("hf_secret\n")
    (tmp_path / "token").chmod(0o644)
    found = probe_hub()
    assert (found.token, found.token_readable_by_others) == (str(tmp_path / "token"), True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert (probe_hub().token, probe_hub().token_readable_by_others) == ("HF_TOKEN", False)
    assert "secret" not in str(found)
    monkeypatch.setenv("HF_TOKEN", " ")
    assert probe_hub().token_empty == "HF_TOKEN"


def test_the_real_tritonserver() -> None:
    triton = probe_triton("")
    assert triton.problem == ""
    assert triton.backends == ("python",)
    assert triton.bundled


def test_a_tritonserver_that_lacks_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    message = "tritonserver: error while loading shared libraries: libdcgm.so.4: cannot open shared object file"
    script(bin_dir, "tritonserver", f"echo '{message}' >&2; exit 127")
    for name in ("python", "tensorrtllm"):
        (tmp_path / "backends" / name).mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    triton = probe_triton("2.68.0")
    assert triton.problem == "lacks the library libdcgm.so.4"
    assert triton.backends == ("python", "tensorrtllm")
    assert (triton.version, triton.bundled) == ("2.68.0", False)


def test_what_is_no_artefact(tmp_path: Path, llama_folder: Path) -> None:
    assert "not a directory" in probe_artefact(tmp_path / "nothing").problems[0]
    assert "config.json" in probe_artefact(tmp_path).problems[0]
    assert "Hugging Face model" in probe_artefact(llama_folder).problems[0]
    (tmp_path / "config.json").write_text("[1]")
    assert "not an object" in probe_artefact(tmp_path).problems[0]


def test_the_layers_of_a_mixture(tmp_path: Path) -> None:
    """quant_algo MIXED_PRECISION says nothing of what a GPU must have; quant_cfg.json, as ModelOpt writes it, does."""
    quantization = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "LlamaForCausalLM", "quantization": quantization})
    )
    modules = {
        "transformer.layers.0.attention.qkv": {"quant_algo": "FP8"},
        "transformer.layers.0.mlp.fc": {"quant_algo": "W4A8_AWQ", "group_size": 128, "pre_quant_scale": True},
    }
    (tmp_path / "quant_cfg.json").write_text(json.dumps({**quantization, "quantized_layers": modules}))
    found = probe_artefact(tmp_path)
    assert (found.quant_algo, found.layer_algos) == ("MIXED_PRECISION", ("FP8", "W4A8_AWQ"))
    (tmp_path / "quant_cfg.json").write_text("[]")
    assert probe_artefact(tmp_path).layer_algos == ()
