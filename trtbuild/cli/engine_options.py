"""Options of `trtbuild engine` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import typer

from trtbuild.engine.options import DEFAULTS, LaunchOptions

_HINTS = get_type_hints(LaunchOptions)
MODES, LAUNCHERS = (tuple(map(str, get_args(_HINTS[name]))) for name in ("mode", "launcher"))
GPU = "TensorRT build"


def _chosen(what: str, allowed: tuple[str, ...], value: str) -> str:
    if value not in allowed:
        raise typer.BadParameter(f"unknown {what} {value!r}; supported: {', '.join(allowed)}")
    return value


def _defaults(name: str) -> str:
    return ", ".join(f"{values[name]} for {target}" for target, values in DEFAULTS.items())


MaxBatchSizeOpt = Annotated[
    int | None,
    typer.Option(min=1, help="Requests in flight at once.", show_default=_defaults("max_batch_size")),
]
MaxSeqLenOpt = Annotated[
    int | None, typer.Option(min=2, help="Longest prompt and output together.", show_default="of the model")
]
MaxNumTokensOpt = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens of one step; longer prompts are cut into chunks.",
        show_default=_defaults("max_num_tokens"),
    ),
]
SetOpt = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any option of trtllm-build 1.2.1, repeatable: gemm_plugin=auto, reduce_fusion=true, max_beam_width=4.",
        show_default=False,
        rich_help_panel=GPU,
    ),
]
ModeOpt = Annotated[
    str,
    typer.Option(
        "--mode",
        metavar="NAME",
        callback=lambda value: _chosen("mode", MODES, value),
        help="in-process: ranks that call tensorrt_llm, and a run that failed goes on; command: trtllm-build itself.",
        rich_help_panel=GPU,
    ),
]
LauncherOpt = Annotated[
    str,
    typer.Option(
        "--launcher",
        metavar="NAME",
        callback=lambda value: _chosen("launcher", LAUNCHERS, value),
        help="mpirun, srun or none; auto: srun inside a Slurm allocation, else mpirun for several processes.",
        rich_help_panel=GPU,
    ),
]
ProcessesOpt = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        metavar="N",
        help="Processes that share the ranks, each with a GPU and the host memory of a rank.",
        show_default="one a rank, at most one a GPU",
        rich_help_panel=GPU,
    ),
]
HostfileOpt = Annotated[
    Path | None,
    typer.Option(
        "--hostfile",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Hosts with the same software and file system, as mpirun takes them: HOST slots=GPUS.",
        show_default=False,
        rich_help_panel=GPU,
    ),
]
TimeoutOpt = Annotated[
    float,
    typer.Option("--timeout", min=0, metavar="S", help="End the build after so long; 0: never.", rich_help_panel=GPU),
]
HangOpt = Annotated[
    float,
    typer.Option(
        "--hang",
        min=0,
        metavar="S",
        help="End it when a rank has neither written to its log nor used the CPU for so long; 0: never.",
        rich_help_panel=GPU,
    ),
]
TimingCacheOpt = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache",
        metavar="FILE",
        help="Kernel timings, read and written; they make the next build of a like model faster.",
        show_default="one a release and GPU kind, in the folder of `trtbuild cache`",
        rich_help_panel=GPU,
    ),
]
LogDirOpt = Annotated[
    Path | None,
    typer.Option(
        "--log-dir",
        metavar="DIR",
        help="Keep the log of each rank here; without it logs are kept only when something fails.",
        show_default=False,
        rich_help_panel=GPU,
    ),
]
DryRunOpt = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show everything that would run and be written; start nothing.", rich_help_panel=GPU
    ),
]
EngineJsonOpt = Annotated[bool, typer.Option("--json", help="The dry run as JSON on stdout.", rich_help_panel=GPU)]


def launch_options(
    mode: str,
    launcher: str,
    processes: int | None,
    hostfile: Path | None,
    timeout: float,
    hang: float,
    timing_cache: Path | None,
    log_dir: Path | None,
) -> LaunchOptions:
    """The launch of one build, from the command's parameters."""
    return LaunchOptions(
        mode="command" if mode == "command" else "in-process",
        launcher=next(name for name in get_args(_HINTS["launcher"]) if name == launcher),
        processes=processes,
        hostfile=hostfile.resolve() if hostfile is not None else None,
        timeout_s=timeout,
        hang_s=hang,
        timing_cache=timing_cache,
        log_dir=log_dir.resolve() if log_dir is not None else None,
    )
