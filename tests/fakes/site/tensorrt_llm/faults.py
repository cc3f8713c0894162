"""Failures on demand: TRTBUILD_FAKE_FAULT is KIND or KIND:RANK, and each stage asks whether it is its turn."""

import os
import signal
import sys
import time

from tensorrt_llm.logger import logger

KINDS = (
    *("gpu-memory", "gpu-memory-tactics", "host-memory", "memory-error", "unsupported-layer", "architecture", "segv"),
    *("hang", "spin", "missing-file", "empty-file", "no-config", "disk-full", "nccl", "tensor-names", "sm100"),
    *("timing-cache", "no-formats", "exit", "traceback-early", "slots"),
)


def wanted(kind: str, rank: int) -> bool:
    chosen, _, number = os.environ.get("TRTBUILD_FAKE_FAULT", "").partition(":")
    assert not chosen or chosen in KINDS, f"no fault {chosen}"
    return chosen == kind and (not number or int(number) == rank)


def before_loading(rank: int) -> None:
    if wanted("traceback-early", rank):
        raise FileNotFoundError(f"[Errno 2] No such file or directory: 'rank{rank}.safetensors'")
    if wanted("tensor-names", rank):
        raise RuntimeError("Required but not provided tensors:{'lm_head.weight'}")


def while_building(rank: int) -> None:
    """After the network stands, while TensorRT would time kernels."""
    if wanted("gpu-memory", rank):
        logger.say(
            "E",
            "[virtualMemoryBuffer.cpp::resizePhysical::127] Error Code 2: OutOfMemory (Requested size was "
            "1207959552 bytes.)",
            "TRT",
        )
        logger.say(
            "E",
            "Requested amount of GPU memory (1207959552 bytes) could not be allocated. There may not be "
            "enough free memory for allocation to succeed.",
            "TRT",
        )
        raise AssertionError("Engine building failed, please check the error log.")
    if wanted("gpu-memory-tactics", rank):
        logger.say(
            "W",
            "Tactic Device request: 157500MB Available: 40339MB. Device memory is insufficient to use tactic.",
            "TRT",
        )
        logger.say(
            "W",
            "UNSUPPORTED_STATE: Skipping tactic 9 due to insufficient memory on requested size of 157500 "
            "detected for tactic 0x0000000000000009.",
            "TRT",
        )
        _no_implementation()
    if wanted("unsupported-layer", rank):
        _no_implementation()
    if wanted("no-formats", rank):
        logger.say(
            "E",
            "9: [pluginV2Builder.cpp::reportPluginError::24] Error Code 9: Internal Error (could not find "
            "any supported formats consistent with input/output data types)",
            "TRT",
        )
        raise AssertionError("Engine building failed, please check the error log.")
    if wanted("host-memory", rank):
        os.kill(os.getpid(), signal.SIGKILL)
    if wanted("memory-error", rank):
        raise MemoryError
    if wanted("segv", rank):
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if wanted("exit", rank):
        sys.stdout.flush()
        os._exit(3)
    if wanted("nccl", rank):
        raise RuntimeError("NCCL error: unhandled system error, /dev/shm is too small")
    if wanted("hang", rank):
        while True:
            time.sleep(3600)
    if wanted("spin", rank):
        while True:
            pass


def while_saving(rank: int) -> None:
    if wanted("disk-full", rank):
        raise OSError(28, "No space left on device")


def _no_implementation() -> None:
    node = "{ForeignNode[LlamaForCausalLM/transformer/layers/0/attention/qkv/CAST_5]}"
    logger.say(
        "E",
        f"10: [optimizer.cpp::computeCosts::4048] Error Code 10: Internal Error (Could not find any "
        f"implementation for node {node}.)",
        "TRT",
    )
    logger.error("Engine building failed, please check the error log.")
    raise AssertionError("Engine building failed, please check the error log.")
