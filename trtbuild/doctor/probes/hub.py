"""The Hugging Face cache and token, by the documented variables; the token itself is never kept."""

from __future__ import annotations

import os
from pathlib import Path

from trtbuild.doctor.facts import Hub

_TRUE = {"1", "ON", "YES", "TRUE"}
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def hub_home() -> Path:
    """$HF_HOME, else huggingface in $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")).expanduser()


def hub_cache() -> Path:
    """$HF_HUB_CACHE, else the older $HUGGINGFACE_HUB_CACHE, else hub in HF_HOME."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(chosen).expanduser() if chosen else hub_home() / "hub"


def token_file() -> Path:
    return Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()


def probe_hub() -> Hub:
    """Where models come from and with which right; no request is made."""
    cache = hub_cache()
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    file = token_file()
    by_variable = next((name for name in _TOKENS if os.environ.get(name, "").strip()), "")
    try:
        by_file = str(file) if file.read_text().strip() else ""
        open_to_others = bool(file.stat().st_mode & 0o077)
    except (OSError, UnicodeDecodeError):
        by_file, open_to_others = "", False
    return Hub(
        cache=str(cache),
        cache_writable=os.access(there, os.W_OK),
        token=by_variable or by_file,
        token_readable_by_others=not by_variable and bool(by_file) and open_to_others,
        token_empty=next((name for name in _TOKENS if name in os.environ and not os.environ[name].strip()), ""),
        offline=next(
            (n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n, "").upper() in _TRUE), ""
        ),
    )
