"""A container of NVIDIA's, as far as `trtbuild serve` sees it: the real tritonserver with a backend named tensorrtllm.

The backend is tests/fakes/triton/model.py; engines are only their config.json.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

from tests.serve_fixture import VOCAB, demo_tokenizer
from tests.tiny import ROOT
from trtbuild.repo.options import RepositoryOptions
from trtbuild.repo.write import write_repository
from trtbuild.serve.install import find_triton

FAKES = ROOT / "tests" / "fakes"


def container(folder: Path, gpus: int = 2) -> dict[str, str]:
    """Environment in which tritonserver, nvidia-smi and srun are found."""
    install = find_triton(folder / "wheel")
    assert install.backends is not None
    shutil.copytree(install.backends, folder / "backends")  # Triton takes no links for backends written in Python
    backend = folder / "backends" / "tensorrtllm"
    backend.mkdir(parents=True)
    shutil.copyfile(FAKES / "triton" / "model.py", backend / "model.py")
    (folder / "bin").mkdir()
    script = folder / "bin" / "tritonserver"
    libraries = ":".join(map(str, install.library_dirs))
    script.write_text(
        f"#!/bin/sh\nexport LD_LIBRARY_PATH={shlex.quote(libraries)}:$LD_LIBRARY_PATH\n"
        f'exec {install.binary} --backend-directory={folder / "backends"} "$@"\n'
    )
    script.chmod(0o755)
    for program in (FAKES / "bin" / "nvidia-smi", FAKES / "slurm" / "srun"):
        (folder / "bin" / program.name).symlink_to(program)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TRTBUILD_FAKE_GPUS": str(gpus)}


def engine(folder: Path, tp: int = 2, pp: int = 1) -> Path:
    """What a server reads of a TensorRT engine before it starts."""
    folder.mkdir(parents=True)
    mapping = {"tp_size": tp, "pp_size": pp, "world_size": tp * pp}
    build = {"max_batch_size": 8, "max_seq_len": 1024, "max_input_len": 1023, "max_beam_width": 1}
    config = {
        "version": "1.2.1",
        "pretrained_config": {"vocab_size": VOCAB, "logits_dtype": "float32", "mapping": mapping},
        "build_config": build,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(tp * pp):
        (folder / f"rank{rank}.engine").write_bytes(b"x")
    return folder


def repository(folder: Path, tp: int = 2, pp: int = 1, **parameters: str) -> Path:
    made = engine(folder / "engine", tp, pp)
    write_repository(
        made, folder / "repo", demo_tokenizer(), RepositoryOptions(preprocessing_instances=1, parameters=parameters)
    )
    return folder / "repo"
