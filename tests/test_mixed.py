"""Mixed precision: which module has which method, on disk, read back, cut and cut again."""

from __future__ import annotations

from trtbuild.quantization import algo_of, module_quantization


def test_the_algorithm_of_a_module_of_one_for_all() -> None:
    config = {"quantization": {"quant_algo": "W4A16_AWQ", "group_size": 64, "exclude_modules": None}}
    assert algo_of(config, "transformer.layers.3.mlp.fc") == "W4A16_AWQ"
    assert module_quantization(config, "transformer.layers.3.mlp.fc")["group_size"] == 64
    assert algo_of(config, "lm_head") is None
    assert algo_of(config, "transformer.layers.3.mlp.router") is None
    config["quantization"]["exclude_modules"] = ["transformer.layers.0.*"]
    assert algo_of(config, "transformer.layers.0.mlp.fc") is None
    assert algo_of(config, "lm_head") == "W4A16_AWQ"  # a list replaces the built-in one
    assert algo_of({}, "lm_head") is None
    assert algo_of({"quantization": {"quant_algo": "NO_QUANT"}}, "transformer.layers.0.mlp.fc") is None


def test_the_algorithm_of_a_module_of_a_mixed_checkpoint() -> None:
    table = {"transformer.layers.1.mlp.fc": {"quant_algo": "W4A16_AWQ", "group_size": 64, "pre_quant_scale": True}}
    config = {
        "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8"},
        "quantized_layers": table,
    }
    assert algo_of(config, "transformer.layers.1.mlp.fc") == "W4A16_AWQ"
    assert algo_of(config, "transformer.layers.0.mlp.fc") is None
    found = module_quantization(config, "transformer.layers.1.mlp.fc")
    assert (found["group_size"], found["kv_cache_quant_algo"], found["has_zero_point"]) == (64, "FP8", False)
