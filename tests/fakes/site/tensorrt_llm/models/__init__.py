"""PretrainedConfig, the architectures, and a model that is the checkpoint itself."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorrt_llm import faults
from tensorrt_llm.logger import logger


class PretrainedConfig:
    """The fields of config.json as attributes; `mapping` has the rank."""

    def __init__(self, document: dict[str, Any]) -> None:
        if "architecture" not in document:
            raise KeyError("architecture")
        self._document = document
        self.__dict__.update({key: value for key, value in document.items() if key not in ("mapping", "quantization")})
        self.mapping = SimpleNamespace(**{"rank": 0, **document["mapping"]})
        self.quantization = SimpleNamespace(
            **{"quant_algo": None, "kv_cache_quant_algo": None, **(document.get("quantization") or {})}
        )

    @classmethod
    def from_json_file(cls, path: str) -> "PretrainedConfig":
        document = json.loads(Path(path).read_text())
        table = Path(path).with_name("quant_cfg.json")
        if (document.get("quantization") or {}).get("quant_algo") == "MIXED_PRECISION":
            document["quantization"]["quantized_layers"] = json.loads(table.read_text())["quantized_layers"]
        return cls(document)

    def set_rank(self, rank: int) -> None:
        self.mapping.rank = rank

    def to_dict(self) -> dict[str, Any]:
        made = json.loads(json.dumps(self._document))
        made["logits_dtype"] = getattr(self, "logits_dtype", "float32")
        return made


class Model:
    def __init__(self, config: PretrainedConfig, weights: Path | None) -> None:
        self.config, self.weights = config, weights

    @classmethod
    def from_checkpoint(cls, folder: str, config: PretrainedConfig) -> "Model":
        """Load this rank's file; the linter says whether TensorRT-LLM could."""
        from trtbuild.lint.check import check

        rank = config.mapping.rank
        faults.before_loading(rank)
        errors = [f for f in check(Path(folder), read_data=False, target="tensorrt").findings if f.severity == "error"]
        if errors:
            raise RuntimeError(
                "Provided tensor names are different from those expected by the engine.\n"
                + "\n".join(f"{f.rule} {f.where}: expected {f.expected}, found {f.found}" for f in errors)
            )
        logger.info(f"loaded rank {rank} of {folder}")
        return cls(config, Path(folder) / f"rank{rank}.safetensors")


MODEL_MAP: dict[str, type[Model]] = dict.fromkeys(
    (
        *("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "QWenForCausalLM", "GemmaForCausalLM"),
        *("Qwen2ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM"),
        *("GPTForCausalLM", "GPTNeoXForCausalLM", "FalconForCausalLM", "BloomForCausalLM", "OPTForCausalLM"),
        *("EncoderModel", "DecoderModel", "BertModel", "RobertaModel", "BertForQuestionAnswering"),
        *("BertForSequenceClassification", "RobertaForQuestionAnswering", "RobertaForSequenceClassification"),
    ),
    Model,
)
