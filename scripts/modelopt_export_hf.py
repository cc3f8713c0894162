"""What NVIDIA ModelOpt's `export_hf_checkpoint` makes of a model; runs in ModelOpt's own environment, never in ours.

    PYTHON_OF_MODELOPT scripts/modelopt_export_hf.py MODEL --ids IDS.npy --method fp8 [--kv-cache fp8] [--group-size 64]
        [--dtype float32] --out DIR

The environment is that of `modelopt_worker.py`. IDS: int64 [samples, tokens], each sample a batch. The model runs in
float32; `--dtype` is the dtype from which ModelOpt rounds the quantized weights: float32 leaves no second rounding in
between, which makes it comparable bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from modelopt_worker import config_of, shim

CONFIGS = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--method", choices=list(CONFIGS), required=True)
    parser.add_argument("--kv-cache", choices=["fp8"])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    export(parser.parse_args())


def export(arguments: argparse.Namespace) -> None:
    """Quantize and export."""
    shim()
    import modelopt.torch.quantization as mtq
    import numpy as np
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, config=config_of(arguments.model), torch_dtype=torch.float32
    ).eval()
    ids = torch.from_numpy(np.load(arguments.ids))
    config = copy.deepcopy(getattr(mtq, CONFIGS[arguments.method]))
    if arguments.method.endswith("awq"):
        weights = config["quant_cfg"]["*weight_quantizer"]
        (weights[0] if isinstance(weights, list) else weights)["block_sizes"][-1] = arguments.group_size
    if arguments.kv_cache:
        config["quant_cfg"] |= mtq.FP8_KV_CFG["quant_cfg"]

    def calibrate(model: torch.nn.Module) -> None:
        for sample in ids:
            model(sample.unsqueeze(0))

    with torch.no_grad():
        mtq.quantize(model, config, calibrate)
    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=getattr(torch, arguments.dtype), export_dir=arguments.out)


if __name__ == "__main__":
    main()
