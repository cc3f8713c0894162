"""Stand-in for tensorrt_llm 1.2.1; see tests/fakes/README.md."""

__version__ = "1.2.1"

print(f"[TensorRT-LLM] TensorRT LLM version: {__version__}", flush=True)

from tensorrt_llm.builder import BuildConfig, Engine, build  # noqa: E402

__all__ = ["BuildConfig", "Engine", "build"]
