"""`trtbuild bench`: load on running servers; their latency, throughput and memory; two runs beside each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from trtbuild.cli import bench_options as o
from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import note, print_json, progress_bar
from trtbuild.cli.reach import connected_untimed
from trtbuild.errors import BenchError, RegressionError

NAME = "bench"
PANEL = "Serve"


@connected_untimed
def command(
    reach: Any,
    endpoint: o.Endpoints = None,
    model: o.Model = "",
    concurrency: o.Concurrency = None,
    request_rate: o.RequestRate = None,
    requests: o.Requests = None,
    duration: o.Duration = None,
    warmup: o.Warmup = None,
    input_len: o.InputLen = 128,
    input_len_stddev: o.InputStddev = 0.0,
    output_len: o.OutputLen = 128,
    output_len_stddev: o.OutputStddev = 0.0,
    prompts: o.Prompts = None,
    seed: o.Seed = 0,
    goodput: o.Goodput = None,
    timeout: o.Timeout = 300.0,
    temperature: o.Temperature = 0.0,
    ignore_eos: o.IgnoreEos = True,
    chat: o.Chat = False,
    tokenizer: o.Tokenizer = None,
    api_key_env: o.ApiKeyEnv = "OPENAI_API_KEY",
    memory_of: o.MemoryOf = None,
    metrics_url: o.MetricsUrl = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="Compare two outputs instead; exit code 10 where NEW is worse."),
    ] = None,
    gate: o.Gates = None,
    output: o.Output = None,
    force: o.Force = False,
    as_json: JsonOpt = False,
) -> None:
    """Latency, throughput, goodput and memory of servers under load: [NAME=]grpc://HOST:PORT or [NAME=]http://HOST/v1.

    Several endpoints make one table: framework, tokens/s, TTFT, memory. TLS and --header are for grpc endpoints.
    """
    if bool(compare) < bool(gate) or (compare and endpoint):
        raise typer.BadParameter("it is with --gate, and without an endpoint", param_hint="--compare")
    if compare is not None:
        _compare(*compare, gate or [], as_json)
        return
    from trtbuild.bench.asking import Asking
    from trtbuild.bench.run import Options

    options = Options(
        o.levels(concurrency, request_rate),
        requests,
        duration,
        warmup,
        o.length(input_len, input_len_stddev),
        o.length(output_len, output_len_stddev),
        o.written(prompts),
        seed,
        o.objectives(goodput),
        Asking(ignore_eos, temperature, chat, tokenizer, os.environ.get(api_key_env, ""), timeout, api_key_env, reach),
        o.ports(memory_of),
        o.urls(metrics_url),
    )
    _measure(endpoint or ["grpc://127.0.0.1:8001"], model, options, output, force, as_json)


def _measure(
    texts: list[str], model: str, options: o.BenchOptions, output: Path | None, force: bool, as_json: bool
) -> None:
    from trtbuild.bench import plots
    from trtbuild.bench.endpoint import endpoints
    from trtbuild.bench.files import summary_document, write_run
    from trtbuild.bench.run import measure
    from trtbuild.bench.table import markdown
    from trtbuild.staging import check_output

    found = endpoints(texts, model)
    named = {*options.memory_ports, *options.metrics_urls} - {endpoint.name for endpoint in found}
    if named:
        raise BenchError([f"no endpoint is named {name!r} (--memory-of, --metrics-url)" for name in sorted(named)])
    if output is not None:
        check_output(output, force=force)  # before an hour of load, not after it
    with progress_bar("bench") as progress:
        records, runs = measure(found, options, progress)
    if output is not None:
        write_run(output, runs, records, force=force)
        note(f"records, summary and plots in {output}")
        if not plots.available():
            note("no plots: pip install 'trtbuild[plot]'")
    if as_json:
        print_json(summary_document(runs))
    else:
        typer.echo(markdown(runs), nl=False)


def _compare(old: Path, new: Path, texts: list[str], as_json: bool) -> None:
    from trtbuild.bench.compare import DEFAULT_GATES, compare, comparison, missing, parse_gates, unlike
    from trtbuild.bench.files import read_runs

    before, after = read_runs(old), read_runs(new)
    verdicts = compare(before, after, parse_gates(texts or DEFAULT_GATES))
    different = unlike(before, after)
    if as_json:
        rows = [
            {
                "run": v.run, "metric": v.gate.metric, "stat": v.gate.stat, "old": v.old, "new": v.new, "unit": v.unit,
                "gate": v.gate.text,
                # Not measured: a failure where the gate was asked for, else nothing was judged (null).
                "passed": v.passed if v.measured else False if texts else None,
            }
            for v in verdicts
        ]  # fmt: skip
        print_json({"schema": 1, "verdicts": rows, "notes": different})
    else:
        typer.echo(comparison(verdicts), nl=False)
        for line in different:
            note(f"note: {line}")
    failures = [v.sentence for v in verdicts if not v.passed] + missing(verdicts, bool(texts))
    if failures:
        raise RegressionError(failures)
