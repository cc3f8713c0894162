"""Serving the application with uvicorn, until Ctrl-C or SIGTERM; open answers are finished."""

from __future__ import annotations

from trtbuild.openai.app import make_app
from trtbuild.openai.options import OpenAiOptions


def serve(options: OpenAiOptions, host: str, port: int, *, grace_s: int = 30, log_level: str = "warning") -> None:
    """Listen on `host`:`port`.

    Raises:
        EngineError: the tokenizer folder has no chat template.
    """
    import uvicorn

    app = make_app(options)
    uvicorn.run(app, host=host, port=port, log_level=log_level, timeout_graceful_shutdown=grace_s, server_header=False)
