"""The table of contents: every stage as one call, in order. Read this first.

    resolve             model name -> folder                                     planning.py    hub/
    make_plan           config + safetensors headers -> ModelPlan                planning.py    plan.py, checkpoint/
    make_checkpoint     folder -> TensorRT-LLM checkpoint, rank files            converting.py  calibrate/, checkpoint/
                        or a quantized Hugging Face one (--target llmapi)        exporting.py   llmapi/
    check_artifact      checkpoint or repository -> Report of all its faults     checking.py    lint/, repo/check/
    reshard_checkpoint  checkpoint -> the same one for another TP x PP           converting.py  reshard.py, checkpoint/
    plan_engine         the same as make_engine for TensorRT, up to the start    building_tensorrt.py
    make_engine         model or checkpoint -> engine, one process a rank        building.py    engine/
    verify_artifact     engine or checkpoint beside its float32 model -> Report  verifying.py   verify/
    run_recipe          recipe -> all of these, skipping what stands already     running.py     recipe/

Each `make_*` writes one output directory, which appears whole or not at all and carries a `trtbuild.json`. The modules
in the middle perform what `plan.py` decided; the folders on the right are stages, which do not know each other.
"""

from __future__ import annotations

from trtbuild.building import make_engine
from trtbuild.building_tensorrt import plan_engine
from trtbuild.checking import check_artifact
from trtbuild.converting import make_checkpoint, reshard_checkpoint
from trtbuild.planning import make_plan, resolve
from trtbuild.running import plan_run, run_recipe
from trtbuild.verifying import verify_artifact

__all__ = [
    "check_artifact",
    "make_checkpoint",
    "make_engine",
    "make_plan",
    "plan_engine",
    "plan_run",
    "reshard_checkpoint",
    "resolve",
    "run_recipe",
    "verify_artifact",
]
