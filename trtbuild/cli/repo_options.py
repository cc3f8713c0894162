"""The options of `trtbuild repo`, as types of its arguments."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

_MORE = "Several models in one repository"
_SERVING = "Serving"
_LLMAPI = "With --target llmapi"


class RepoTarget(str, Enum):
    """Targets that the engine does not say itself."""

    llmapi = "llmapi"


Engine = Annotated[
    Path,
    typer.Argument(help="Engine directory (of `trtbuild engine`, or of trtllm-build); llmapi: a Hugging Face folder."),
]
Target = Annotated[
    RepoTarget | None,
    typer.Option(
        help="llmapi: TensorRT-LLM's PyTorch backend serves a Hugging Face checkpoint. Default: the engine's own.",
        show_default=False,
    ),
]
TpSize = Annotated[int, typer.Option("--tp", min=1, help="Tensor parallel GPUs.", rich_help_panel=_LLMAPI)]
PpSize = Annotated[int, typer.Option("--pp", min=1, help="Pipeline stages.", rich_help_panel=_LLMAPI)]
Argument = Annotated[
    list[str] | None,
    typer.Option(
        "--llm",
        metavar="KEY=VALUE",
        help="Any other argument of tensorrt_llm.LLM; the value is YAML.",
        rich_help_panel=_LLMAPI,
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the repository goes.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="The Hugging Face model folder; its tokenizer files are copied."),
]
Name = Annotated[
    str, typer.Option(help="Goes before the models' names: `llama` gives llama_ensemble.", rich_help_panel=_MORE)
]
Add = Annotated[bool, typer.Option("--add", help="Add to the repository that is there.", rich_help_panel=_MORE)]
ModelVersion = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="With --add: the engine is this version of tensorrt_llm; the other models stay (cpu target).",
        show_default=False,
        rich_help_panel=_MORE,
    ),
]
VersionPolicy = Annotated[
    str | None,
    typer.Option(
        help="Versions that the server loads: latest, latest:N, all, or 1,3. Default: latest; with --model-version, "
        "what the model has.",
        show_default=False,
        rich_help_panel=_MORE,
    ),
]
Bls = Annotated[
    bool, typer.Option(help="With tensorrt_llm_bls, the ensemble in one Python model.", rich_help_panel=_SERVING)
]
AccumulateTokens = Annotated[
    bool,
    typer.Option(
        help="tensorrt_llm_bls (llmapi: the model) streams the text so far, not what is new.", rich_help_panel=_SERVING
    ),
]
BlsInstances = Annotated[
    int | None,
    typer.Option(help="Processes of tensorrt_llm_bls. Default: 1.", show_default=False, rich_help_panel=_SERVING),
]
Instances = Annotated[
    int | None,
    typer.Option(
        help="Instances of the engine (tensorrt target). Default: as many as gpu_device_ids and participant_ids have "
        "parts, with a semicolon between two.",
        show_default=False,
        rich_help_panel=_SERVING,
    ),
]
EncoderFeaturesType = Annotated[
    str,
    typer.Option(help="Type of encoder_input_features: FP16, BF16 or FP32, as the engine.", rich_help_panel=_SERVING),
]
PromptTableType = Annotated[
    str,
    typer.Option(help="Type of prompt_embedding_table: FP16, BF16 or FP32, as the engine.", rich_help_panel=_SERVING),
]
PreprocessingInstances = Annotated[
    int | None,
    typer.Option(
        help="Tokenizing processes. Default: 1 on the CPU, else 4.", show_default=False, rich_help_panel=_SERVING
    ),
]
Decoupled = Annotated[
    bool, typer.Option(help="Answers can be streamed; without it a request has one.", rich_help_panel=_SERVING)
]
MaxBatchSize = Annotated[
    int | None,
    typer.Option(
        help="Largest batch of one request. Default: the engine's max_batch_size; 1 when not decoupled.",
        show_default=False,
        rich_help_panel=_SERVING,
    ),
]
MaxQueueDelayMicroseconds = Annotated[
    int, typer.Option(min=0, help="How long requests wait for others.", rich_help_panel=_SERVING)
]
MaxQueueSize = Annotated[
    int, typer.Option(min=0, help="Requests that may wait; 0: any number.", rich_help_panel=_SERVING)
]
BatchSchedulerPolicy = Annotated[
    str | None,
    typer.Option(
        help="guaranteed_no_evict (the backend's default) or max_utilization.",
        show_default=False,
        rich_help_panel=_SERVING,
    ),
]
ExcludeInputInOutput = Annotated[
    bool,
    typer.Option(
        help="Answers in one piece come without the prompt, unless the request says.", rich_help_panel=_SERVING
    ),
]
MaxTokensInKv = Annotated[
    int | None,
    typer.Option(
        "--max-tokens-in-kv", help="Tokens that the KV cache holds. Default: by free memory.", show_default=False
    ),
]
KvMemFraction = Annotated[
    float | None,
    typer.Option(
        help="Share of free GPU memory for the KV cache (tensorrt and llmapi; 0.9 there).", show_default=False
    ),
]
AddSpecialTokens = Annotated[bool, typer.Option(help="Let the tokenizer add BOS and the like to every prompt.")]
SkipSpecialTokens = Annotated[bool, typer.Option(help="Leave special tokens out of the text.")]
Parameter = Annotated[
    list[str] | None,
    typer.Option("--parameter", metavar="KEY=VALUE", help="Any other parameter of the tensorrt_llm model."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
