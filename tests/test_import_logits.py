"""Engines of imported quantized models say what transformers says with the weights that the formats stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.family_ranks import job_of, run_job, run_jobs
from tests.quantized_sources import FORMATS, make_source
from trtbuild import pipeline
from trtbuild.spec import ConvertOptions

# Weight-only forms; the zero points of GPTQ are rounded to float16, whose kernels add them.
NAMES = {"gptq": 5e-3, "gptq 8": 5e-3, "gptq sym awq": 1e-4, "awq": 5e-3, "ct int4": 1e-4, "ct int4 asym": 5e-3,
         "modelopt awq": 1e-4}  # fmt: skip
PROMPT = np.random.default_rng(5).integers(1, 130, 21).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of every format for one rank and for two, their logits in NAME-TP.npz."""
    folder = tmp_path_factory.mktemp("imported")
    torch.set_num_threads(1)
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for name in NAMES:
        tied = name == "gptq"
        form = FORMATS[name]
        source, _ = make_source(folder / name, form, attention_bias=True, tie_word_embeddings=tied)
        for tp, listed in jobs.items():
            at = folder / f"{name}-{tp}"
            options = ConvertOptions(tp, 1, "float16", form.method, sm=90 if tp == 2 else None)
            checkpoint = pipeline.make_checkpoint(str(source), at.with_suffix(".checkpoint"), options)
            listed.append(job_of(checkpoint, at, [PROMPT], 2))
    run_jobs(jobs[2], folder, ranks=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_THREADS", "1")
        for job in jobs[1]:
            run_job(job, None)
    return folder


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", list(NAMES))
def test_logits(name: str, tp: int, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / name / "plain", dtype=torch.float32).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if not key.endswith("_proj.weight"):
                value.copy_(value.half())  # as the checkpoint has them
        expected = model(torch.tensor([PROMPT])).logits[0].numpy()
    found = np.load(folder / f"{name}-{tp}.npz")["logits"]
    assert np.abs(found - expected).max() < NAMES[name] * np.abs(expected).max()
