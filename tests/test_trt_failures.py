"""Logs of failed builds, as users reported them -> the sentence and the remedy."""

from __future__ import annotations

import re

import pytest

from trtbuild.engine.tensorrt.failure_table import FAILURES
from trtbuild.engine.tensorrt.failures import classify, gave_up, last_error, telling, telling_lines

TIME = "[11/26/2026-15:47:38] "
# name of the row -> lines as they stand in a log; where they were seen is in the table
LOGS: dict[str, str] = {
    "gpu-memory-tactics": TIME + "[TRT] [W] Tactic Device request: 157500MB Available: 40339MB. Device memory is "
    "insufficient to use tactic.\n"
    + TIME
    + "[TRT] [W] UNSUPPORTED_STATESkipping tactic 9 due to insufficient memory on "
    "requested size of 157500 detected for tactic 0x0000000000000009.\n" + TIME + "[TRT] [E] 10: "
    "[optimizer.cpp::computeCosts::4048] Error Code 10: Internal Error (Could not find any implementation for node "
    "{ForeignNode[LLaMAForCausalLM/transformer/layers/0/attention/qkv/CAST_5]}.)\n",
    "gpu-memory": "[TRT] [E] Requested amount of GPU memory (17179869184 bytes) could not be allocated.\n",
    "host-memory": "srun: error: node7: task 3: Killed\n"
    "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.\n",
    "disk-full": "OSError: [Errno 28] No space left on device\n",
    "cannot-write": "PermissionError: [Errno 13] Permission denied: '/engines/rank0.engine'\n",
    "no-gpu": "ValueError: max_workers must be greater than 0\n",
    "gpu-number": "RuntimeError: CUDA error: invalid device ordinal\n",
    "driver-old": "CUDA error 35: CUDA driver version is insufficient for CUDA runtime version\n",
    "fabric-manager": "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions "
    "before calling NumCudaDevices() that might have already set an error? Error 802: system not yet initialized\n",
    "gpu-busy": "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable\n",
    "gpu-broken": "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered\n",
    "gpu-too-old": "[TensorRT-LLM][ERROR] Assertion failed: Unsupported architecture (/src/tensorrt_llm/cpp/"
    "tensorrt_llm/kernels/contextFusedMultiHeadAttention/fmhaRunner.cpp:89)\n",
    "sm100": "RuntimeError: INT8/INT4 quantization is not supported on SM>=100.\n",
    "plugin-sm": "NotImplementedError: gemm_swiglu_plugin=fp8 is not supported on SM 100.\n",
    "fp8-gpu": "what():  [TensorRT-LLM][ERROR] Assertion failed: FP8 FMHA cannot be enabled except on Ada or "
    "Hopper or Blackwell Arch. (/code/tensorrt_llm/cpp/tensorrt_llm/common/attentionOp.cpp:2357)\n",
    "architecture": '  File "modeling_utils.py", line 416, in from_dict\n    model_cls = '
    "MODEL_MAP[config['architecture']]\n                ~~~~^^^^\nKeyError: 'Qwen2_5_VLForConditionalGeneration'\n",
    "not-a-checkpoint": "    model_cls = MODEL_MAP[config['architecture']]\nKeyError: 'architecture'\n",
    "tensor-names": "RuntimeError: Required but not provided tensors:{'decoder_layers.28.cross_attention.dense.weight',"
    " 'final_layernorm.weight'}\n",
    "tensor-shape": "[TRT-LLM] [E] Current weight shape is invalid for mapping.tp_size=4\n",
    "damaged-file": "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer\n",
    "quantized-dims": "RuntimeError: [TensorRT-LLM][ERROR] Assertion failed: Number of bytes for rows and cols must "
    "be a multiple of 32. However, num_rows_bytes = 4096 and num_col_bytes = 3696.\n",
    "groupwise-tactic": "Assertion failed: No valid weight only groupwise GEMM tactic(It is usually caused by ...)\n",
    "managed-weights": "RuntimeError: Manage weights of weight only quant works only with plugin currently.\n",
    "bare-option": "trtllm-build: error: argument --multiple_profiles: expected one argument\n",
    "unknown-option": "trtllm-build: error: unrecognized arguments: --auto_parallel 2\n",
    "invalid-choice": "trtllm-build: error: argument --gemm_plugin: invalid choice: 'int8' (choose from 'auto')\n",
    "build-config-keys": "    max_input_len = config.pop('max_input_len')\nKeyError: 'max_input_len'\n",
    "kv-cache-type": "ValueError: Invalid KV cache type: quantized\n",
    "shapes": "AssertionError: EncoderModel should have same --max_input_len (1024) and --max_seq_len (512).\n",
    "conflict": "RuntimeError: GemmSwiGLU plugin requires --use_fused_mlp flag\n",
    "no-tensorrt-llm": "ModuleNotFoundError: No module named 'tensorrt_llm'\n",
    "no-mpi4py": "ModuleNotFoundError: No module named 'mpi4py'\n",
    "library-missing": "ImportError: libnvinfer.so.10: cannot open shared object file: No such file or directory\n",
    "library-mismatch": "ImportError: /libs/libth_common.so: undefined symbol: _ZN3c106detail14torchCheckFail\n",
    "slurm-pmi": "[[INVALID],INVALID] PMI2_Init failed to initialize.  Return code: 14\n",
    "slots": "There are not enough slots available in the system to satisfy the 8 slots\nthat were requested\n",
    "remote-start": "ORTE was unable to reliably start one or more daemons.\n",
    "as-root": "mpirun has detected an attempt to run as root.\n",
    "nccl": "RuntimeError: NCCL error: unhandled system error\n",
    "no-formats": "[TRT] [E] 9: Internal Error (could not find any supported formats consistent with input/output data "
    "types)\n",
    "no-kernel": "[TRT] [E] 10: Could not find any implementation for node {ForeignNode[GPTLMHeadModel/layers/0]}.\n",
    "timing-cache": "AssertionError: Failed to save timing cache.\n",
    "not-saved": "RuntimeError: tensorrt_llm saved no rank1.engine\n",
    "nothing-built": '  File "_common.py", line 105, in serialize_engine\n    f.write(engine)\nTypeError: bytes\n',
}


def test_every_row_has_an_example_a_remedy_and_a_source() -> None:
    assert {row.name for row in FAILURES} == set(LOGS)
    assert all(row.remedy and row.source for row in FAILURES)


@pytest.mark.parametrize("name", LOGS)
def test_a_log_is_recognised_among_usual_lines(name: str) -> None:
    usual = TIME + "[TRT] [I] Global timing cache in use. Profiling results in this builder pass will be stored.\n"
    after = TIME + "[TRT-LLM] [E] Engine building failed, please check the error log.\n"
    found = classify(usual + LOGS[name] + after, "exit code 1")
    assert found.name == name
    assert not re.search(r"[{}\[\]]", found.sentence.replace("{ForeignNode[", "").replace("]}", "")), found.sentence
    assert "  " not in found.sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu-memory-tactics", "(asked 157500MB, free 40339MB), at node {ForeignNode[LLaMAForCausalLM"),
        ("gpu-memory", "(a request of 17179869184 bytes failed)"),
        ("quantized-dims", "(4096 x 3696 bytes)"),
        ("architecture", "Qwen2_5_VLForConditionalGeneration"),
        ("plugin-sm", "gemm_swiglu_plugin fp8 is not supported on SM 100"),
        ("library-missing", "libnvinfer.so.10"),
        ("cannot-write", "/engines/rank0.engine"),
        ("slots", "fewer slots than the 8 processes"),
        ("unknown-option", "--auto_parallel 2"),
        ("build-config-keys", "(max_input_len)"),
        ("tensor-names", "; decoder_layers.28.cross_attention.dense.weight is missing"),
        ("gpu-broken", "uncorrectable ECC error encountered"),
        ("shapes", "(max_input_len 1024, max_seq_len 512)"),
    ],
)
def test_the_sentence_has_the_numbers(name: str, words: str) -> None:
    assert words in classify(LOGS[name]).sentence


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # The loader's check in other releases; 1.2 has the wording above.
        ("tensor-names", "RuntimeError: Provided tensor names are different from those expected by the engine.\n"),
        (
            "remote-start",
            "PRTE has lost communication with a remote daemon.\n\n  HNP daemon   : [prterun-a-1@0,0] on node a\n"
            "  Remote daemon: [prterun-a-1@0,2] on node b\n",
        ),
        (
            "remote-start",
            "A daemon failed to report back after being spawned.\n\n  Local host:    a\n  Remote host:   b\n",
        ),
        ("tensor-names", "AssertionError: Expected but not provided tensors:{'lm_head.weight'}\n"),
        ("driver-old", "RuntimeError: The NVIDIA driver on your system is too old (found version 11080). Please\n"),
        ("driver-old", "ERROR: This container was built for NVIDIA Driver Release 590.44 or later, but\n"),
        ("gpu-busy", "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable\n"),
        ("fabric-manager", "   [[ System not yet initialized (error 802) ]]\n"),
        ("shapes", "AssertionError: Validation of the tensor dimension ranges failed, please check the ranges\n"),
        (
            "conflict",
            "RuntimeError: Gather context logits is not support with draft len > 0. If want to get the accepted\n",
        ),
        ("conflict", "RuntimeError: multiple_profiles is enabled, while opt_num_tokens is set.\n"),
    ],
)
def test_other_wordings_of_the_same(name: str, text: str) -> None:
    found = classify(text, "exit code 1")
    assert found.name == name, found
    assert "{" not in found.sentence
    assert name != "remote-start" or found.sentence.endswith("another host, or lost it: b")


def test_skipped_tactics_alone_are_no_failure_but_no_kernel_for_lack_of_memory_is_one() -> None:
    """The pain of #743 and #1077: out of memory that reads as a missing implementation."""
    skipped, missing = LOGS["gpu-memory-tactics"].split("\n")[:2], LOGS["no-kernel"]
    assert classify("\n".join(skipped)).name == "unknown"
    assert classify(missing).name == "no-kernel"
    assert classify("\n".join(skipped) + "\n" + missing).name == "gpu-memory-tactics"


def test_a_signal_without_a_word_in_the_log() -> None:
    killed = classify("[TRT] [I] fine\n", "signal 9 (Killed)")
    assert killed.name == "host-memory"
    assert "SIGKILL" in killed.sentence
    assert "--processes" in killed.remedy
    assert "the kernel killed it" in classify("", "signal 9 (Killed)", oom_kill=True).sentence
    assert "crashed (SIGSEGV)" in classify("", "signal 11 (Segmentation fault)").sentence
    assert classify("", "signal 7").remedy.startswith("Give the container more shared memory")


def test_an_unknown_failure_shows_its_last_error() -> None:
    text = TIME + "[TRT] [E] 4: [network.cpp::validate::1] Error Code 4: Something new\nTraceback\n  frame\n"
    found = classify(text, "exit code 1")
    assert found.name == "unknown"
    assert found.sentence == "[TRT] [E] 4: [network.cpp::validate::1] Error Code 4: Something new"
    assert last_error("fine\n") == ""
    assert classify("fine\n").sentence == "it failed, and its log does not say why"


def test_which_of_several_logs_tells_why() -> None:
    assert telling(["[TRT] [I] fine", "[TRT] [E] what", LOGS["gpu-memory"]]) == 2
    assert telling(["fine", "[TRT] [E] what"]) == 1
    assert telling(["fine", ""]) is None


def test_a_process_of_trtllm_build_that_only_waits() -> None:
    trace = (
        'Traceback (most recent call last):\n  File "/x/tensorrt_llm/commands/build.py", line 3, in parallel_build\n'
    )
    assert not gave_up(trace)
    assert gave_up(trace + "    build_and_save()\nRuntimeError: no\n")
    assert not gave_up('Traceback (most recent call last):\n  File "/x/other.py", line 3, in f\nValueError: harmless\n')
    assert telling_lines(trace + "    call()\nRuntimeError: no\n", 5) == [
        *("Traceback (most recent call last):", "RuntimeError: no"),
    ]
