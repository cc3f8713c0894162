"""What is to be served, and what an engine is built for. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from trtbuild.sizing.gpus import Gpu
from trtbuild.sizing.legality import LATEST


@dataclass(frozen=True)
class Limits:
    """What is fixed when an engine is built, and how much of the free memory the KV cache takes.

    Names and defaults are those of trtllm-build and Triton (engine-build 2.2, 2.3, 9.2).
    """

    max_batch_size: int = 2048
    max_num_tokens: int = 8192
    max_seq_len: int = 4096
    kv_fraction: float = 0.9
    tokens_per_block: int = 32


@dataclass(frozen=True)
class Target:
    """What is to be served: `concurrency` sequences at once, each of `context` tokens, prompt and answer together."""

    gpu: Gpu
    context: int
    concurrency: int
    version: str = LATEST
    gpus_per_node: int = 8
