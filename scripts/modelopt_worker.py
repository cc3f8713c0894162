"""What NVIDIA ModelOpt makes of a model and calibration tokens; runs in an environment of its own, never in ours.

    PYTHON_OF_MODELOPT scripts/modelopt_worker.py MODEL --ids IDS.npy --method int4_awq [--group-size 64] --out DIR
        [--kv-cache int8] [--perplexity TOKENS.npy]

The environment: `pip install --no-deps nvidia-modelopt==0.33.1 nvidia-modelopt-core==0.33.1 torchprofile`, then
`pip install "numpy<2" pydantic nvidia-ml-py rich scipy tqdm pulp regex safetensors ninja accelerate "huggingface_hub<1"
transformers==4.53.3` beside the torch that the project uses. Model and calibration in float32; the export is a
TensorRT-LLM checkpoint. IDS and TOKENS are int64 [samples, tokens]. The last line is JSON: seconds of each stage.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import types
from pathlib import Path

CONFIGS = {"int4_awq": "INT4_AWQ_CFG", "int8_sq": "INT8_SMOOTHQUANT_CFG", "fp8": "FP8_DEFAULT_CFG"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--method", choices=list(CONFIGS), required=True)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--kv-cache", choices=["int8", "fp8"])
    parser.add_argument("--perplexity", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    print(json.dumps(run(parser.parse_args())))


def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Quantize, export; seconds of each."""
    start = time.perf_counter()
    shim()
    import modelopt.torch.quantization as mtq
    import numpy as np
    import torch
    from modelopt.torch.export import export_tensorrt_llm_checkpoint
    from transformers import AutoModelForCausalLM

    found = {"import_s": time.perf_counter() - start}
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, config=config_of(arguments.model), torch_dtype=torch.float32
    ).eval()
    ids = torch.from_numpy(np.load(arguments.ids))
    config = copy.deepcopy(getattr(mtq, CONFIGS[arguments.method]))
    if arguments.method == "int4_awq":
        config["quant_cfg"]["*weight_quantizer"]["block_sizes"][-1] = arguments.group_size
    if arguments.kv_cache:
        kv = (
            {"int8": mtq.INT8_KV_CFG, "fp8": mtq.FP8_KV_CFG} if hasattr(mtq, "INT8_KV_CFG") else {"fp8": mtq.FP8_KV_CFG}
        )
        config["quant_cfg"] |= kv[arguments.kv_cache]["quant_cfg"]

    def calibrate(model: torch.nn.Module) -> None:
        for sample in ids:
            model(sample.unsqueeze(0))

    start = time.perf_counter()
    with torch.no_grad():
        mtq.quantize(model, config, calibrate)
    found["quantize_s"] = time.perf_counter() - start
    if arguments.perplexity:
        found["perplexity"] = perplexity(model, torch.from_numpy(np.load(arguments.perplexity)))
    start = time.perf_counter()
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model, decoder_type="llama", dtype=torch.float16, export_dir=arguments.out, inference_tensor_parallel=1
        )
    return {**found, "export_s": time.perf_counter() - start}


def config_of(model: Path):  # type: ignore[no-untyped-def]
    """The config, with rope_theta where this older transformers reads it: it would silently take 10000."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    rope = json.loads((model / "config.json").read_text()).get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.rope_theta = rope["rope_theta"]
    return config


def perplexity(model, windows) -> float:  # type: ignore[no-untyped-def]
    """Of the fake-quantized model, as it stands before the export."""
    import torch

    losses = []
    with torch.no_grad():
        for window in windows:
            log_probs = model(window.unsqueeze(0)).logits[0, :-1].double().log_softmax(-1)
            losses.append(-log_probs.gather(1, window[1:].unsqueeze(1)))
    return float(torch.cat(losses).mean().exp())


def shim() -> None:
    """ModelOpt asks torch.onnx for a constant that later releases of torch no longer have."""
    try:
        import torch.onnx._globals  # noqa: F401
    except ImportError:
        module = types.ModuleType("torch.onnx._globals")
        module.GLOBALS = types.SimpleNamespace(export_onnx_opset_version=17, in_onnx_export=False)  # type: ignore[attr-defined]
        sys.modules["torch.onnx._globals"] = module


if __name__ == "__main__":
    main()
