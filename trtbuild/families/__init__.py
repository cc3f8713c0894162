"""The table of families: add a file beside this one and a row here."""

from __future__ import annotations

from trtbuild.families.bert import BERT
from trtbuild.families.bloom import BLOOM
from trtbuild.families.falcon import FALCON
from trtbuild.families.gemma import GEMMA
from trtbuild.families.gemma2 import GEMMA2
from trtbuild.families.gemma3 import GEMMA3
from trtbuild.families.gpt2 import GPT2
from trtbuild.families.gpt_bigcode import GPT_BIGCODE
from trtbuild.families.gptneox import GPTNEOX
from trtbuild.families.llama import LLAMA
from trtbuild.families.mistral import MISTRAL
from trtbuild.families.mixtral import MIXTRAL
from trtbuild.families.opt import OPT
from trtbuild.families.phi import PHI
from trtbuild.families.phi3 import PHI3
from trtbuild.families.qwen2 import QWEN2
from trtbuild.families.qwen2_moe import QWEN2_MOE
from trtbuild.families.qwen3 import QWEN3
from trtbuild.families.qwen3_moe import QWEN3_MOE
from trtbuild.families.roberta import ROBERTA
from trtbuild.families.rules import Family
from trtbuild.families.starcoder2 import STARCODER2
from trtbuild.families.t5 import T5

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI,
    PHI3,
    GPT2,
    GPT_BIGCODE,
    STARCODER2,
    FALCON,
    GPTNEOX,
    BLOOM,
    OPT,
    *T5,
    *BERT,
    *ROBERTA,
)


def families_of(architecture: str) -> tuple[Family, ...]:
    """What handles a Hugging Face architecture string: one family, both halves of an encoder-decoder, or nothing."""
    return tuple(family for family in FAMILIES if architecture in family.architectures)


def family_of_checkpoint(architecture: str) -> Family | None:
    """The family whose checkpoints have this TensorRT-LLM architecture string, or None."""
    return next((family for family in FAMILIES if architecture in family.architectures.values()), None)


def half_of(architecture: str) -> str:
    """`encoder` or `decoder` for a half of an encoder-decoder model, by TensorRT-LLM's architecture string; else ""."""
    family = family_of_checkpoint(architecture)
    return family.folder if family is not None else ""


def architectures() -> list[str]:
    """All supported Hugging Face architecture strings, sorted."""
    return sorted({name for family in FAMILIES for name in family.architectures})
