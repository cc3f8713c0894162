"""Makes tests/data/llmapi: what ModelOpt's export_hf_checkpoint writes for the tiny models of tests/llmapi_models.py.

    .venv/bin/python scripts/llmapi_golden.py --modelopt PYTHON_OF_MODELOPT

The environment is that of scripts/modelopt_worker.py. Weights that are equal bit for bit are kept as SHA-256, scalars
as numbers, the int4 forms as tensors: there a rounding edge may fall the other way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.llmapi_models import DATA, EXPORTS, described, make, token_ids  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modelopt", type=Path, required=True, help="python of ModelOpt's environment")
    modelopt = parser.parse_args().modelopt
    DATA.mkdir(parents=True, exist_ok=True)
    exports: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        np.save(scratch / "ids.npy", token_ids())
        for kind, method, kv in EXPORTS:
            name = "-".join(filter(None, (kind, method, kv and f"kv_{kv}")))
            model, out = scratch / kind, scratch / name
            if not model.is_dir():
                make(kind, model)
            command = [modelopt, ROOT / "scripts/modelopt_export_hf.py", model, "--ids", scratch / "ids.npy"]
            command += ["--method", method, "--out", out, *(("--kv-cache", kv) if kv else ())]
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
            tensors = load_file(out / "model.safetensors")
            config = json.loads((out / "config.json").read_text())
            exports[name] = {
                "hf_quant_config": json.loads((out / "hf_quant_config.json").read_text()),
                "quantization_config": config["quantization_config"],
                "tensors": {key: described(tensors[key]) for key in sorted(tensors)},
            }
            if "awq" in method:
                made = {key: tensor for key, tensor in tensors.items() if ".layers." in key}
                save_file(made, DATA / f"{name}.safetensors")
    lines = [f"{json.dumps(name)}: {json.dumps(export)}" for name, export in exports.items()]
    (DATA / "exports.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
