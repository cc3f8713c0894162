"""Run NVIDIA's own Triton clients, unmodified, against repositories of trtbuild, and print a table of what came out.

    git clone https://github.com/triton-inference-server/tensorrtllm_backend
    git -C tensorrtllm_backend checkout c2e65b8
    pip install pandas tabulate        # two of the clients import them
    python scripts/try_nvidia_clients.py tensorrtllm_backend

Commit c2e65b8 (13 May 2025) is the last that holds the clients; later they are in TensorRT-LLM's `triton_backend/`,
whose folder is taken as well. The demo model, or --model, is built in float32, so that the tokens that a client
compares (`--check-output`) are transformers'. Two repositories are served, as upstream needs two: a decoupled one for
streams, and one that is not for the clients' unary calls. Exit code 1: a run did not end as it should.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo_model import demo_model

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ["The capital of France is", "Once upon a time there was a", "Water boils at a temperature of"]
TOKENS = 24
WRONG = re.compile(r"error from server|Traceback|Encountered error|Failed receiving")


@dataclass(frozen=True)
class Reference:
    """Transformers' greedy answers: ids and texts of `PROMPTS`."""

    prompt_ids: list[list[int]]
    answer_ids: list[list[int]]
    answers: list[str]


@dataclass(frozen=True)
class Run:
    """One call of a client. `refused`: it must fail, with these words; `shows`: what its output must hold."""

    what: str
    server: str  # decoupled or unary
    client: str
    arguments: tuple[str, ...]
    shows: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Served:
    http: str
    grpc: str
    models: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="tensorrtllm_backend, or TensorRT-LLM's triton_backend")
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder of a cpu engine's model; default: the demo model"
    )
    parser.add_argument("--only", default="", help="run only what matches this expression")
    parser.add_argument("--verbose", action="store_true", help="show the output of every client")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped on the way out
    model = options.model or demo_model()
    with tempfile.TemporaryDirectory(prefix="nvidia-clients-") as scratch:
        folder = Path(scratch)
        reference = make_reference(model)
        trtbuild("engine", "--no-cache", model, "-o", folder / "engine", "--dtype", "float32")
        runs = [
            run
            for run in all_runs(folder, model, reference)
            if re.search(options.only, f"{Path(run.client).stem} {run.what}")
        ]
        with serving(folder, model, "decoupled") as decoupled, serving(folder, model, "unary") as unary:
            servers = {"decoupled": decoupled, "unary": unary}
            failed = [run for run in runs if not show(options, run, servers[run.server])]
    print(f"{len(runs) - len(failed)} of {len(runs)} ended as they should")
    sys.exit(1 if failed else 0)


def all_runs(folder: Path, model: Path, reference: Reference) -> list[Run]:
    files = write_files(folder, reference)
    return [
        *token_runs(files, model, reference),
        *text_runs(reference),
        *tool_runs(files, model),
    ]


def write_files(folder: Path, reference: Reference) -> dict[str, str]:
    """What the clients read: token lists as CSV, and a dataset of three articles to be continued."""
    rows = {
        "prompt": reference.prompt_ids[0],
        "whole": reference.prompt_ids[0] + reference.answer_ids[0],
        "answer": reference.answer_ids[0],
    }
    files = {}
    for name, row in rows.items():
        files[name] = str(folder / f"{name}.csv")
        with open(files[name], "w", newline="") as file:
            csv.writer(file).writerow(row)
    files["dataset"] = str(folder / "dataset.json")
    articles = [{"input": prompt, "instruction": "and", "output": "word " * 12} for prompt in PROMPTS]
    Path(files["dataset"]).write_text(json.dumps(articles))
    return files


def token_runs(files: dict[str, str], model: Path, reference: Reference) -> Iterator[Run]:
    """inflight_batcher_llm_client.py: `tensorrt_llm` with token ids."""
    client = "inflight_batcher_llm/client/inflight_batcher_llm_client.py"
    ids = ("--input-tokens-csv", files["prompt"], "--request-output-len", str(TOKENS))
    check = (*ids, "--check-output", "--output-tokens-csv")
    whole, answer = (*check, files["whole"]), (*check, files["answer"], "--exclude-input-in-output")
    long = ("--input-tokens-csv", files["prompt"], "--request-output-len", "2000", "--stop-after-ms", "400")
    ended = "Output sequence"
    for server, stream in (("decoupled", ("-S",)), ("unary", ())):
        for what, arguments, shows in (
            ("greedy tokens equal transformers'", whole, "PASS!"),
            ("exclude_input_in_output", answer, "PASS!"),
            ("log probs", (*whole, "--return-log-probs"), r"output_log_probs: \[\[+-"),
            ("requested outputs", (*whole, "--requested-outputs", "output_ids", "sequence_length"), "PASS!"),
            ("request id", (*whole, "--request-id", "abc"), "PASS!"),
            (
                "sampling and penalties",
                (
                    *ids,
                    "--top-k",
                    "50",
                    "--top-p",
                    "0.9",
                    "--temperature",
                    "0.7",
                    "--repetition-penalty",
                    "1.1",
                    "--presence-penalty",
                    "0.1",
                    "--frequency-penalty",
                    "0.1",
                ),
                ended,
            ),
            (
                "text with its tokenizer",
                ("--tokenizer-dir", str(model), "--text", PROMPTS[0]),
                re.escape("Output beam 0"),
            ),
            ("stopped by a second request", (*long, "--request-id", "7"), ended),
            ("cancelled", (*long, "--stop-via-request-cancel"), "Request is cancelled"),
        ):
            yield Run(what, server, client, (*stream, *arguments), shows)
        yield Run("beam search is refused", server, client, (*stream, *ids, "-b", "4"), refused="beam_width 4")
    several = (*ids, "-n", "3", "--exclude-input-in-output", "--top-k", "20", "--temperature", "1.5")
    for stream in (("-S",), ()):
        yield Run("several sequences", "decoupled", client, (*stream, *several), ended)
        yield Run("several sequences, greedy", "decoupled", client, (*stream, *whole, "-n", "2"), "PASS!")


def text_runs(reference: Reference) -> Iterator[Run]:
    """end_to_end_grpc_client.py: text through the ensemble and BLS."""
    client = "inflight_batcher_llm/client/end_to_end_grpc_client.py"
    first = ("-p", PROMPTS[0], "-o", str(TOKENS))
    all_of_them = ("-p", json.dumps(PROMPTS), "-o", str(TOKENS))
    expect = ("--check-outputs", "--expected-outputs")
    answers, answer = json.dumps(reference.answers), json.dumps(reference.answers[:1])
    word = f" {reference.answers[0].split()[0].strip('.,')}"  # as the tokens have it, space included
    stopped = json.dumps([reference.answers[0][: reference.answers[0].index(word) + len(word)]])
    for model in ("ensemble", "tensorrt_llm_bls"):
        of = ("--model-name", model)
        for stream in ((), ("-S",)):
            for what, arguments, shows in (
                ("greedy text equals transformers'", (*all_of_them, *expect, answers), ""),
                ("a batch of prompts", (*all_of_them, *expect, answers, "--batch-inputs"), ""),
                ("exclude_input_in_output", (*first, *expect, answer, "--exclude-input-in-output"), ""),
                ("stop words", (*first, *expect, stopped, "--stop-words", word), ""),
                ("bad words", (*first, "--bad-words", word), f"^(?!.*is{word})"),
                ("several sequences", (*first, "-n", "3", *expect, answer), ""),
                ("log probs", (*first, *expect, answer, "--return-log-probs"), r"output_log_probs.shape: \(1, 1"),
                ("request id and end id", (*first, *expect, answer, "--request-id", "9", "--end-id", "2"), ""),
                (
                    "penalties",
                    (
                        *first,
                        "--temperature",
                        "0.8",
                        "--repetition-penalty",
                        "1.2",
                        "--presence-penalty",
                        "0.1",
                        "--frequency-penalty",
                        "0.1",
                    ),
                    "",
                ),
            ):
                yield Run(what, "decoupled", client, (*of, *stream, *arguments), shows)
            refused = ("-b", "4")
            yield Run(
                "beam search is refused", "decoupled", client, (*of, *stream, *first, *refused), refused="beam_width 4"
            )


def tool_runs(files: dict[str, str], model: Path) -> Iterator[Run]:
    """end_to_end_test.py (it compares the three models called by hand with the ensemble), benchmark_core_model.py."""
    test, bench = (f"tools/inflight_batcher_llm/{name}.py" for name in ("end_to_end_test", "benchmark_core_model"))
    for protocol in ("http", "grpc"):
        data = ("-i", protocol, "--max-input-len", "200", "--dataset", files["dataset"])
        yield Run("the chain by hand", "unary", test, data, "Functionality test succeed[^~]*Total Latency")
        yield Run("the chain by hand, log probs", "unary", test, (*data, "--return-log-probs"), "Total Latency")
        yield Run("the chain by hand, and BLS", "unary", test, (*data, "--test-bls"), "Total Latency")
    dataset = ("dataset", "--dataset", files["dataset"], "--tokenizer-dir", str(model))
    normal = (
        "token-norm-dist",
        "--input-mean",
        "64",
        "--input-stdev",
        "5",
        "--output-mean",
        "20",
        "--output-stdev",
        "2",
    )
    for server, how in (
        ("unary", ("-i", "http")),
        ("unary", ("-i", "grpc")),
        ("decoupled", ("-i", "grpc", "--decoupled")),
    ):
        common = (*how, "--max-input-len", "200", "--num-requests", "30")
        yield Run("a dataset", server, bench, (*common, *dataset), "Total Latency")
        yield Run("random ids at a rate", server, bench, (*common, "--request-rate", "8", *normal), "Total Latency")


def show(options: argparse.Namespace, run: Run, served: Served) -> bool:
    """Run one client, print its row of the table, and say whether it ended as it should."""
    row = f"{run.server:10} {Path(run.client).stem:28} {' '.join(flags(run)):24} {run.what:36}"
    model = "tensorrt_llm_bls"
    if model not in served.models and any(word in run.arguments for word in (model, "--test-bls")):
        print(f"{row} left out: the repository has no {model}", flush=True)
        return True
    script = options.checkout / run.client
    url = served.http if "http" in run.arguments else served.grpc
    before = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [sys.executable, str(script), "--url", url, *run.arguments],
            capture_output=True, text=True, timeout=900, cwd=script.parent, env=environment,
        )  # fmt: skip
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, output = -1, f"hangs: {error.stdout!r}"
    wrong = verdict(run, code, output)
    print(f"{row} {wrong or 'as it should'} ({time.monotonic() - before:.1f} s)", flush=True)
    if wrong or options.verbose:
        print(*(f"    | {line}" for line in [" ".join(run.arguments), *output.splitlines()[-25:]]), sep="\n")
    return not wrong


def flags(run: Run) -> list[str]:
    named = [word for word in run.arguments if word in ("-S", "-n", "http", "grpc", "tensorrt_llm_bls", "--decoupled")]
    return [{"-S": "stream", "--decoupled": "stream", "-n": "", "tensorrt_llm_bls": "BLS"}.get(w, w) for w in named]


def verdict(run: Run, code: int, output: str) -> str:
    """Empty, or what is wrong. One of the clients ends with 0 after an error, so the words count as well."""
    if run.refused:
        return "" if run.refused in output else f"not refused with {run.refused!r}"
    if code or WRONG.search(output):
        return f"FAILED, exit code {code}"
    return "" if re.search(run.shows, output) else f"does not show {run.shows!r}"


def make_reference(model: Path) -> Reference:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # on a busy host threads mostly wait for each other
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    answers = []
    for ids in prompts:
        whole = network.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        answers.append(whole[0, len(ids) :].tolist())
    return Reference(prompts, answers, tokenizer.batch_decode(answers, skip_special_tokens=True))


def trtbuild(*arguments: object) -> None:
    subprocess.run([*cli(), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def cli() -> list[str]:
    return [sys.executable, "-c", "from trtbuild.cli.app import main; main()"]


@contextlib.contextmanager
def serving(folder: Path, model: Path, kind: str) -> Iterator[Served]:
    """A repository of the engine behind tritonserver, on ports of its own."""
    repository = folder / f"repo-{kind}"
    # benchmark_core_model.py sends random numbers up to 2^31 as token ids.
    options = ["--max-tokens-in-kv", "32768", "--parameter", "out_of_vocabulary_ids=wrap"]
    options += ["--no-decoupled"] if kind == "unary" else []
    trtbuild("repo", folder / "engine", "-o", repository, "--tokenizer", model, *options)
    sys.path.insert(0, str(ROOT))
    from tests.serve_fixture import free_ports

    http, grpc, metrics = map(str, free_ports(3))
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    process = subprocess.Popen(
        [*cli(), "serve", str(repository), *ports, "--log-dir", str(folder / f"logs-{kind}")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("ready:"):
            sys.exit(f"the {kind} server did not start")
        models = tuple(path.name for path in repository.iterdir() if (path / "config.pbtxt").is_file())
        yield Served(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", models)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
