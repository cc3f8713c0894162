"""How every endpoint is asked. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtbuild.client.options import Reach


@dataclass(frozen=True)
class Asking:
    """`ignore_eos`: answers go on to their length. `chat`: OpenAI's chat API, else its plain one.

    `tokenizer`: folder whose tokenizer counts where a server does not. `api_key`: sent to OpenAI endpoints;
    `api_key_env`: the variable that it came from. `reach`: TLS and headers for Triton endpoints.
    """

    ignore_eos: bool = True
    temperature: float = 0.0
    chat: bool = False
    tokenizer: Path | None = None
    api_key: str = ""
    timeout_s: float = 300.0
    api_key_env: str = "OPENAI_API_KEY"
    reach: Reach = field(default_factory=Reach)
