"""Known failures of an engine build as data: what the log holds, what it means, what to do, who reported it. PURE."""

from __future__ import annotations

from trtbuild.engine.tensorrt.failure_hardware import HARDWARE, Failure

_LLM = "NVIDIA/TensorRT-LLM"
_ONE_RELEASE = (
    "Checkpoint and builder must be of one release and format: `trtbuild check CHECKPOINT` names the difference."
)
_OTHER_LAYOUT = (
    "Choose another --tp and --pp (tp 4 x pp 2 instead of tp 8 often fits) or group size, and convert again."
)
_SAME_CONTAINER = (
    "Use one container for all of it, e.g. the Triton image 26.04-trtllm-python-py3; `trtbuild doctor` looks."
)

FAILURES: tuple[Failure, ...] = (
    *HARDWARE,
    # the checkpoint
    Failure(
        "architecture",
        (
            r"(?:Unsupported model architecture: (?P<name>\S+)|MODEL_MAP\[config\['architecture'\]\][\s\S]{0,400}?"
            r"KeyError: '(?!architecture')(?P<other>\w+)')",
        ),
        "this release of TensorRT-LLM does not know the architecture {name}{other}",
        "`trtbuild show families` lists those that 1.2.1 has; the checkpoint's config.json names it.",
        f"engine-build 11; {_LLM}#1026, #2141, #2794",
    ),
    Failure(
        "not-a-checkpoint",
        (r"(?:KeyError: 'architecture'|config\.json'?: No such file|No such file or directory: '[^']*config\.json')",),
        "what it was given is no TensorRT-LLM checkpoint",
        "Give the model itself to `trtbuild engine`, or convert it with `trtbuild checkpoint`.",
        f"{_LLM}#6360, #1063",
    ),
    Failure(
        "tensor-names",
        (
            r"(?:Provided tensor names are different from those expected|"
            r"(?:Required|Expected) but not provided tensors: ?(?:\{'(?P<name>[^'\n]+)')?)",
        ),
        "the checkpoint's tensors are not those of the model[; {name} is missing]",
        _ONE_RELEASE,
        f"engine-build 11; {_LLM}#1109; triton-inference-server/tensorrtllm_backend#707",
    ),
    Failure(
        "tensor-shape",
        (
            r"(?:The value updated is not the same shape as the original|Current weight shape is invalid for "
            r"mapping\.tp_size=(?P<tp>\d+))",
        ),
        "a tensor of the checkpoint has another shape than the model wants",
        _ONE_RELEASE,
        f"{_LLM}#648",
    ),
    Failure(
        "damaged-file",
        (r"(?:SafetensorError|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer|incomplete metadata)",),
        "a rank file of the checkpoint is damaged",
        "`trtbuild check CHECKPOINT` says which; convert the model again.",
        "safetensors' own wording",
    ),
    Failure(
        "quantized-dims",
        (
            r"(?:must be a multiple of 32\. However, num_rows_bytes = (?P<rows>\d+) and num_col_bytes = (?P<cols>\d+)|"
            r"number of rows must be a multiple of 64 but the number of rows is (?P<k>\d+))",
        ),
        "the kernels of this quantization cannot take a rank's part of a weight[ ({rows} x {cols} bytes)][ ({k} rows)]",
        _OTHER_LAYOUT,
        f"{_LLM}#843, #894, #729; Tlntin/Qwen-TensorRT-LLM#118",
    ),
    Failure(
        "groupwise-tactic",
        (r"No valid weight only groupwise GEMM tactic",),
        "no int4 kernel works for this group size on this GPU",
        "Quantize in groups of 64 or 128 (--group-size), and look for warnings about memory above.",
        f"{_LLM}#988",
    ),
    Failure(
        "managed-weights",
        (r"Manage weights of weight only quant works only with plugin",),
        "fast_build does not go with this quantization",
        "Leave fast_build out.",
        "engine-build 2.7",
    ),
    # the options
    Failure(
        "bare-option",
        (r"argument (?P<name>--\S+): expected one argument",),
        "{name} takes a value, enable or disable",
        "Give the value; trtbuild itself never leaves it out, so look for a wrapper around trtllm-build.",
        "engine-build 2.8 and 11",
    ),
    Failure(
        "unknown-option",
        (r"unrecognized arguments: (?P<names>.+)",),
        "this trtllm-build does not know {names}",
        "It is of another release than 1.2.1: `trtllm-build --version` tells.",
        f"engine-build 11; {_LLM}#1840",
    ),
    Failure(
        "invalid-choice",
        (r"argument (?P<name>--\S+): invalid (?:choice|\w+ value): (?P<value>[^\n(]+)",),
        "this trtllm-build does not take {value} for {name}",
        "It is of another release than 1.2.1: `trtllm-build --help` lists what it takes.",
        "argparse's own wording",
    ),
    Failure(
        "build-config-keys",
        (
            r"(?:KeyError: '(?P<key>max_\w+|opt_num_tokens|kv_cache_type)'|"
            r"validation errors? for (?P<model>BuildConfig|PluginConfig|LoraConfig))",
        ),
        "this TensorRT-LLM reads another build_config ({key}{model})",
        "It is of another release than 1.2.1: `python -c 'import tensorrt_llm'` prints which.",
        "engine-build 3.1 and 11",
    ),
    Failure(
        "kv-cache-type",
        (r"Invalid KV cache type: (?P<name>\S+)",),
        "this TensorRT-LLM knows no KV cache type {name}",
        "It is of another release than 1.2.1, which has continuous, paged and disabled.",
        "engine-build 3.1",
    ),
    Failure(
        "shapes",
        (
            r"(?:Validation of the tensor dimension ranges failed|"
            r"Each dimension must specify a 3-elements tuple|"
            r"max_input_len should not be larger than max_seq_len|"
            r"EncoderModel should have same --max_input_len \((?P<input>\d+)\) and --max_seq_len \((?P<longest>\d+)\))",
        ),
        "the lengths that it was asked for contradict each other[ (max_input_len {input}, max_seq_len {longest})]",
        "Look at max_num_tokens, opt_num_tokens, max_input_len, max_seq_len: `trtbuild engine --dry-run` shows them.",
        f"engine-build 4.1; tensorrt_llm/builder.py; {_LLM}#1714",
    ),
    Failure(
        "conflict",
        (
            r"RuntimeError: (?P<what>Gather context logits is not support with draft len|"
            r"multiple_profiles is enabled, while opt_num_tokens|GemmSwiGLU plugin)",
        ),
        "two options exclude each other: {what} ...",
        "Change one of them; `trtbuild engine --dry-run` checks all combinations that are known.",
        "engine-build 2.10",
    ),
    # libraries
    Failure(
        "no-tensorrt-llm",
        (r"(?:No module named 'tensorrt_llm'|trtllm-build: (?:not found|No such file)|No module named 'tensorrt')",),
        "tensorrt_llm is not installed where the ranks run",
        "Run in the container, or install it on each host: pip install trtbuild[tensorrt].",
        "Python's own wording",
    ),
    Failure(
        "no-mpi4py",
        (r"No module named 'mpi4py'|cannot load MPI library",),
        "mpi4py or its MPI library is not installed where the ranks run",
        "Install both for the Python that runs them: pip install mpi4py, and Open MPI.",
        "mpi4py's own wording",
    ),
    Failure(
        "library-missing",
        (r"(?P<name>lib[\w.+-]+?\.so[.\d]*): cannot open shared object file",),
        "the library {name} is not there",
        _SAME_CONTAINER,
        f"{_LLM}#218, #442, #6102",
    ),
    Failure(
        "library-mismatch",
        (r"(?:undefined symbol: (?P<symbol>\S+)|version `(?P<version>(?:GLIBCXX|CXXABI|GLIBC)_[\d.]+)' not found)",),
        "libraries of different releases are mixed ({symbol}{version})",
        _SAME_CONTAINER,
        f"{_LLM}#808, #1302",
    ),
    # starting
    Failure(
        "slurm-pmi",
        (
            r"(?:PMI2_Init failed|not built with SLURM's PMI support|PMIX?_?Init.*fail|"
            r"OPAL ERROR: Unreachable in file .*pmix|"
            r"srun: error: Couldn't find the specified plugin name for mpi/pmix)",
        ),
        "MPI could not be started under Slurm",
        "Start it by --launcher mpirun, or have Slurm's PMIx plugin installed (srun --mpi=list shows it).",
        "engine-build 5; docs/source/legacy/reference/troubleshooting.md",
    ),
    Failure(
        "slots",
        (r"There are not enough slots available in the system to satisfy the (?P<number>\d+)",),
        "the hosts have fewer slots than the {number} processes that were asked for",
        "Write slots=GPUS behind each host of the hostfile, or lower --processes.",
        "open-mpi's own wording; mpitutorial/mpitutorial#77",
    ),
    Failure(
        "remote-start",
        (
            r"(?:daemon failed to report back after being spawned(?:[\s\S]{0,800}?Remote host: +(?P<host>\S+))?|"
            r"lost communication with a remote daemon(?:[\s\S]{0,400}?Remote daemon: .* on node (?P<lost>\S+))?|"
            r"unable to reliably start one or more daemons|"
            r"Permission denied \(publickey|Host key verification failed|Could not resolve hostname|"
            r"ssh: command not found|failed to start (?:the )?remote daemon)",
        ),
        "mpirun could not start its daemon on another host, or lost it[: {host}][: {lost}]",
        "ssh HOST true must work without a password from here, and the same Open MPI must be there at the same path; "
        "a host that answered before may have gone down.",
        "open-mpi's own wording; triton-inference-server/tensorrtllm_backend#698",
    ),
    Failure(
        "as-root",
        (r"mpirun has detected an attempt to run as root",),
        "mpirun refuses to run as root",
        "Set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.",
        "engine-build 5",
    ),
    Failure(
        "nccl",
        (r"(?:NCCL (?:error|WARN)[^\n]{0,200}?(?P<what>unhandled \w+ error|shm|Cuda failure[^\n]*)|ncclSystemError)",),
        "NCCL could not be set up[ ({what})]",
        "Give the container shared memory and locked memory: docker run --shm-size=2g --ulimit memlock=-1.",
        "engine-build 9.1",
    ),
    # the builder
    Failure(
        "no-formats",
        (r"[Cc]ould not find any supported formats consistent with input/output data types",),
        "TensorRT has no kernel for the types of a layer, mostly for lack of memory or of a plugin",
        "Keep gpt_attention_plugin on, try gemm_plugin auto, and lower max_num_tokens or max_batch_size.",
        "engine-build 11; docs/source/legacy/reference/troubleshooting.md",
    ),
    Failure(
        "no-kernel",
        (r"Could not find any implementation for node (?P<node>\{[^}\n]+\}|[^\n]{1,80})",),
        "TensorRT has no kernel for node {node}",
        "Try gemm_plugin auto (--set gemm_plugin=auto); errors of plugins stand above it in the log. "
        + _SAME_CONTAINER,
        f"{_LLM}#54, #1478",
    ),
    Failure(
        "timing-cache",
        (r"Failed to save timing cache",),
        "the timing cache could not be written",
        "Choose another place (--timing-cache FILE).",
        "tensorrt_llm/builder.py",
    ),
    Failure(
        "not-saved",
        (r"RuntimeError: tensorrt_llm saved no (?P<name>\S+)",),
        "TensorRT-LLM said nothing was wrong, but wrote no {name}",
        "Read the log for errors of TensorRT ([TRT] [E]), and look at the file system of the output.",
        "trtbuild's own check",
    ),
    Failure(
        "nothing-built",
        (r"(?:in serialize_engine[\s\S]{0,200}?TypeError|assert engine is not None)",),
        "TensorRT gave no engine; the reason stands above, in its own words",
        "Read the lines with [TRT] [E] in the log; most often memory, or a layer without a kernel.",
        f"{_LLM}#1433, #1478",
    ),
)
