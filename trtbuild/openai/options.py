"""What an operator chooses of the endpoint. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtbuild.client.options import Reach


@dataclass(frozen=True)
class ServedModel:
    """`name`: the model's for clients. `model`: Triton's name of it, a model that takes text.

    `tokenizer`: folder whose chat template is used; None for plain completions only.
    """

    name: str = "ensemble"
    model: str = "ensemble"
    tokenizer: Path | None = None


@dataclass(frozen=True)
class OpenAiOptions:
    """`models`: what is served, each under a name of its own.

    `api_keys`: one of them must come as `Authorization: Bearer KEY`; empty lets everybody in. `max_body_bytes` and
    `max_prompt_chars` end in 413, `max_concurrency` in 429. `guided`: the server has guided decoding.
    `stall_s` and `reach`: towards Triton.
    """

    url: str = "127.0.0.1:8001"
    models: tuple[ServedModel, ...] = (ServedModel(),)
    api_keys: tuple[str, ...] = ()
    default_max_tokens: int = 256
    max_body_bytes: int = 2_000_000
    max_prompt_chars: int = 1_000_000
    max_concurrency: int = 256
    guided: bool = False
    stall_s: float = 60.0
    reach: Reach = field(default_factory=Reach)
