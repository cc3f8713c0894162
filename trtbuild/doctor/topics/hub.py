"""The Hugging Face hub: token, cache, offline mode. Variables as huggingface_hub documents them."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor.facts import Facts
from trtbuild.doctor.finding import Finding, Wish


def judge(facts: Facts, _wish: Wish) -> Iterator[Finding]:
    hub = facts.hub
    if hub.cache_writable:
        yield Finding("ok", "hub.cache", f"cache {hub.cache}")
    else:
        yield Finding(
            "warn",
            "hub.cache",
            f"cache {hub.cache} is not writable",
            "Models of the hub are kept there; a container needs it mounted for its user.",
            "docker run -v ~/.cache/huggingface:/cache -e HF_HOME=/cache ...",
        )
    if hub.offline:
        yield Finding(
            "info", "hub.offline", f"offline by {hub.offline}", "Only models that are in the cache are found."
        )
    if hub.token_empty:
        yield Finding(
            "warn",
            "hub.token",
            f"{hub.token_empty} is set and empty",
            "It hides no other token, but looks like one.",
            f"unset {hub.token_empty}",
        )
    if hub.token_readable_by_others:
        yield Finding(
            "warn",
            "hub.token",
            f"token in {hub.token}, readable by others",
            "Who has it acts as you on the hub.",
            f"chmod 600 {hub.token}",
        )
    elif hub.token:
        yield Finding("ok", "hub.token", f"token by {hub.token}")
    else:
        yield Finding(
            "info", "hub.token", "no token", "Gated models (Llama, Gemma) refuse the download.", "hf auth login"
        )
