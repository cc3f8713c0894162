"""What `trtbuild bench` computes: metrics, arrivals, prompts, gates, tables and pictures, without a server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench_records import MS, record, run_of
from tests.serve_fixture import demo_tokenizer
from tests.tiny import ROOT, trtbuild
from trtbuild.bench import plots
from trtbuild.bench.compare import DEFAULT_GATES, compare, parse_gates
from trtbuild.bench.endpoint import endpoints
from trtbuild.bench.files import read_runs, write_run
from trtbuild.bench.metrics import PERCENTILES, is_good, parse_goodput, statistics, summary
from trtbuild.bench.prompts import Prompter, read_prompts
from trtbuild.bench.record import TIMEOUT, record_of
from trtbuild.bench.sse import Events
from trtbuild.bench.table import markdown
from trtbuild.bench.workload import WORDS, Length, Level, Written, arrivals, items, lengths
from trtbuild.errors import BenchError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_statistics_are_numpys(values: list[float]) -> None:
    found = statistics(values, "ms")
    assert found["unit"] == "ms"
    assert list(found) == ["unit", "avg", *(f"p{p}" for p in PERCENTILES), "min", "max", "std"]  # genai-perf's order
    for percent in PERCENTILES:
        assert found[f"p{percent}"] == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)
    assert found["avg"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values), rel=1e-6, abs=1e-6)
    assert (found["min"], found["max"]) == (min(values), max(values))


def test_metrics_of_requests_by_hand() -> None:
    """Three answers and a time-out, worked out on paper."""
    records = [
        record(0, 0, [100, 120, 160]),  # 3 tokens, itl (160 - 100) / 2 = 30
        record(1, 50, [200]),  # one token: no itl
        record(2, 150, [50, 100], tokens=6),  # pieces of several tokens: itl 50 / 5 = 10
        record(3, 0, [10, 20], error_kind=TIMEOUT, error="late", end_ns=0),
    ]
    found = summary(records, {"time_to_first_token": 120, "inter_token_latency": 25})
    assert found["time_to_first_token"]["avg"] == pytest.approx(np.mean([100, 200, 50]))
    assert found["time_to_second_token"]["avg"] == pytest.approx(np.mean([20, 50]))
    assert found["request_latency"]["p50"] == pytest.approx(160)
    assert found["inter_token_latency"]["avg"] == pytest.approx(20)
    assert found["output_token_throughput_per_user"]["avg"] == pytest.approx(np.mean([1000 / 30, 100]))
    assert found["output_token_throughput_per_user"]["unit"] == "tokens/sec/user"
    assert found["inter_chunk_latency"]["max"] == pytest.approx(50)
    # from the first request at 0 to the last token at 250
    assert found["benchmark_duration"]["avg"] == pytest.approx(0.25)
    assert found["output_token_throughput"]["avg"] == pytest.approx(10 / 0.25)
    assert found["request_throughput"]["avg"] == pytest.approx(3 / 0.25)
    assert found["request_count"] == {"unit": "count", "avg": 3}
    assert found["error_request_count"]["avg"] == 1
    assert found["request_goodput"]["avg"] == pytest.approx(
        1 / 0.25
    )  # the first has a pause of 30, the second waits 200
    assert not is_good(records[3], {})


def test_metrics_are_aiperfs() -> None:
    """The same requests, summarized by AIPerf and here."""
    golden = json.loads((ROOT / "tests" / "data" / "aiperf.json").read_text())
    begin = min(one["request_start_ns"] for one in golden["records"])
    records = []
    for number, one in enumerate(golden["records"]):
        pieces = np.cumsum([one["time_to_first_token"], *one["inter_chunk_latency"]]).tolist()
        made = record(number, (one["request_start_ns"] - begin) / MS, pieces, one["output_sequence_length"])
        records.append(replace(made, input_tokens=one["input_sequence_length"]))
    found = summary(records)
    compared = 0
    for name, wanted in golden["summary"].items():
        # AIPerf's clock runs until the stream is closed, genai-perf's and ours until the last token.
        exact = 1e-9 if "throughput" not in name.removesuffix("_per_user") and name != "benchmark_duration" else 2e-4
        for stat in set(wanted) - {"unit", "count", "sum"}:
            assert found[name][stat] == pytest.approx(wanted[stat], rel=exact, abs=1e-6), (name, stat)
            compared += 1
        assert found[name]["unit"] == {"request_count": "count"}.get(name, wanted["unit"])  # genai-perf's word
    assert compared == 8 * 13 + 4


def test_latency_counts_from_when_a_request_was_due() -> None:
    late = record(0, 0, [100, 110])
    late = replace(late, sent_ns=late.scheduled_ns + 90 * MS)
    assert late.time_to_first_token == pytest.approx(100)
    assert summary([late])["schedule_delay"]["avg"] == pytest.approx(90)


def test_a_record_is_its_line() -> None:
    for one in (record(3, 5, [1, 2, 4]), record(1, 0, [], error_kind="server", error="away")):
        line = json.loads(json.dumps(one.document()))
        assert record_of(line) == one
    metrics = record(0, 0, [10, 30]).document()["metrics"]
    assert metrics["time_to_first_token"] == {"value": 10.0, "unit": "ms"}
    assert metrics["output_token_throughput_per_user"] == {"value": 50.0, "unit": "tokens/sec/user"}


def test_arrivals_are_a_poisson_process() -> None:
    rate, count = 7.0, 20_000
    times = np.array(arrivals(Level("request_rate", rate), count, 5))
    gaps = np.sort(np.diff(times, prepend=0.0))
    assert (gaps >= 0).all()
    ideal = 1 - np.exp(-rate * gaps)
    steps = np.arange(count + 1) / count
    distance = max(np.abs(ideal - steps[1:]).max(), np.abs(ideal - steps[:-1]).max())
    assert distance < 1.63 / np.sqrt(count)  # Kolmogorov and Smirnov, 1 %
    in_a_second = np.bincount(times.astype(int))[:-1]
    assert in_a_second.mean() == pytest.approx(rate, rel=0.03)
    assert in_a_second.var() == pytest.approx(rate, rel=0.08)  # as much as its mean
    assert arrivals(Level("request_rate", rate), 50, 5) == times[:50].tolist()
    assert arrivals(Level("request_rate", rate), 50, 6) != times[:50].tolist()


def test_lengths_and_prompts_come_from_the_seed() -> None:
    drawn = np.array(lengths(Length(100, 15), 5000, 3))
    assert drawn.mean() == pytest.approx(100, abs=1)
    assert drawn.std() == pytest.approx(15, rel=0.05)
    assert lengths(Length(2, 50), 500, 3) == [max(1, value) for value in lengths(Length(2, 50), 500, 3)]
    made = Prompter(Length(20), 3, None, 0).make(0, 40)
    assert made(7) == Prompter(Length(20), 3, None, 0).make(5, 10)(7)  # a number has its prompt, whatever is around it
    assert len({made(n).split()[0] for n in range(40)}) > 20  # no common beginning that a prefix cache would know
    assert made(0) != Prompter(Length(20), 4, None, 0).make(0, 1)(0)
    written = items(5, 0, Length(9), written=[Written("a", 3), Written("b")], first=10)
    assert [(i.number, i.prompt, i.max_tokens) for i in written] == [
        (10, "a", 3), (11, "b", 9), (12, "a", 3), (13, "b", 9), (14, "a", 3),
    ]  # fmt: skip


def test_prompts_have_the_tokens_of_a_real_tokenizer() -> None:
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(str(demo_tokenizer()))
    made = Prompter(Length(60, 20), 0, demo_tokenizer(), 0).make(0, 30)
    assert [len(real.encode(made(n))) for n in range(30)] == lengths(Length(60, 20), 30, 0)
    assert all(len(real.encode(f" {word}")) == 1 for word in WORDS)
    with pytest.raises(BenchError, match="no prompt of 1 tokens"):
        Prompter(Length(1), 0, None, 4).make(0, 1)


def test_prompts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo words\n")
    assert read_prompts(tmp_path / "a.txt") == [Written("one"), Written("two words")]
    lines = [{"text": "x", "max_tokens": 4}, {"prompt": "y"}, {"text_input": "z", "output_length": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_prompts(tmp_path / "a.jsonl") == [Written("x", 4), Written("y"), Written("z", 2)]
    (tmp_path / "bad.jsonl").write_text('{"text": 1}\n[]\n{"text": "x", "max_tokens": 0}\nnonsense\n')
    with pytest.raises(BenchError) as caught:
        read_prompts(tmp_path / "bad.jsonl")
    assert len(caught.value.problems) == 4  # all at once
    for text in ("", "\n"):
        (tmp_path / "empty.txt").write_text(text)
        with pytest.raises(BenchError, match="no prompt"):
            read_prompts(tmp_path / "empty.txt")


def test_endpoints() -> None:
    texts = ["trt=grpc://h:8001", "https://api.x.com/openai/v1/#m/1", "vllm=http://[::1]:8000", "http://h/v1?k=v"]
    with pytest.raises(BenchError, match="k=v"):
        endpoints(texts)
    a, b, c = endpoints(texts[:3], "fallback")
    assert (a.name, a.kind, a.address, a.model, a.host, a.port) == ("trt", "triton", "h:8001", "fallback", "h", 8001)
    assert (b.kind, b.address, b.model, b.port) == ("openai", "https://api.x.com/openai/v1", "m/1", 443)
    assert (c.address, c.host, c.port) == ("http://[::1]:8000/v1", "::1", 8000)
    with pytest.raises(BenchError) as caught:
        endpoints(["localhost:8001", "grpc://h", "a=grpc://h:1", "a=grpc://h:2", "a/b=grpc://h:3", "http://h:99999"])
    assert len(caught.value.problems) == 5


def test_events_come_in_any_blocks() -> None:
    stream = b'data: {"a": 1}\r\n\r\n: ping\n\nevent: x\ndata: two\ndata: lines\n\ndata: [DONE]\n\n'
    wanted = ['{"a": 1}', "two\nlines", "[DONE]"]
    assert Events().push(stream) == wanted
    for size in (1, 2, 3, 7, 20):
        events = Events()
        blocks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert [data for block in blocks for data in events.push(block)] == wanted


def test_objectives() -> None:
    assert parse_goodput(["time_to_first_token:75 inter_token_latency:19.75", "request_latency:9"]) == {
        "time_to_first_token": 75, "inter_token_latency": 19.75, "request_latency": 9,
    }  # fmt: skip
    with pytest.raises(BenchError) as caught:
        parse_goodput(["ttft:5", "request_latency", "inter_token_latency:-1"])
    assert len(caught.value.problems) == 3
    fast, slow = record(0, 0, [10, 20]), record(0, 0, [10, 200])
    assert [is_good(r, {"output_token_throughput_per_user": 50}) for r in (fast, slow)] == [True, False]


def two_runs(slower: float = 1.0) -> list[dict[str, Any]]:
    """Two levels; latencies are `slower` times as long."""
    return [
        run_of(
            [record(n, 300 * n, [slower * 50, slower * 60, slower * 80], level=level) for n in range(5)], level=level
        )
        for level in (1, 2)
    ]


def test_gates() -> None:
    names = {(g.metric, g.stat, g.worse, g.relative) for g in parse_gates(["ttft_p99=20", "throughput=5%,errors=0"])}
    assert names == {
        ("time_to_first_token", "p99", 20, False),
        ("output_token_throughput", "avg", 5, True),
        ("error_request_count", "avg", 0, False),
    }
    with pytest.raises(BenchError) as caught:
        parse_gates(["speed=5%", "ttft_p50", "itl=x"])
    assert len(caught.value.problems) == 3
    (gate,) = parse_gates(["ttft_p50=5%"])
    assert gate.passes(100, 105)
    assert not gate.passes(100, 105.01)
    assert gate.passes(100, 1)
    (gate,) = parse_gates(["throughput=5%"])
    assert gate.passes(100, 95)
    assert not gate.passes(100, 94.9)
    verdicts = compare(two_runs(), two_runs(1.04), parse_gates(DEFAULT_GATES))
    assert all(verdict.passed for verdict in verdicts)
    worse = [v for v in compare(two_runs(), two_runs(1.2), parse_gates(["ttft_p50=10%"])) if not v.passed]
    assert [round(v.new / v.old, 6) for v in worse if v.old and v.new] == [1.2, 1.2]
    with pytest.raises(BenchError, match="no run of a, concurrency 2"):
        compare(two_runs(), two_runs()[:1], parse_gates(DEFAULT_GATES))


def test_compare_exit_codes(tmp_path: Path) -> None:
    for name, slower in (("old", 1.0), ("same", 1.02), ("new", 1.5)):
        write_run(tmp_path / name, two_runs(slower), [], force=False)
    good = trtbuild("bench", "--compare", tmp_path / "old", tmp_path / "same")
    assert good.returncode == 0, good.stderr
    bad = trtbuild("bench", "--compare", tmp_path / "old", tmp_path / "new" / "summary.json")
    assert bad.returncode == 10
    assert "WORSE" in bad.stdout
    assert "time_to_first_token p50 50 -> 75 ms (+50.0 %)" in bad.stderr
    loose = trtbuild("bench", "--compare", tmp_path / "old", tmp_path / "new", "--gate", "ttft_p50=60%", "--json")
    assert loose.returncode == 0
    assert [row["passed"] for row in json.loads(loose.stdout)["verdicts"]] == [True, True]
    absent = trtbuild("bench", "--compare", tmp_path / "old", tmp_path / "new", "--gate", "gpu_memory=5%", "--json")
    assert absent.returncode == 10
    assert [row["passed"] for row in json.loads(absent.stdout)["verdicts"]] == [False, False]
    usual = trtbuild("bench", "--compare", tmp_path / "old", tmp_path / "same", "--json")
    passed = {row["metric"]: row["passed"] for row in json.loads(usual.stdout)["verdicts"]}
    assert (passed["time_to_first_token"], passed["server_memory_pss"]) == (True, None)
    assert trtbuild("bench", "--compare", tmp_path / "old", tmp_path / "nothing").returncode == 3
    assert trtbuild("bench", "--compare", tmp_path / "old", tmp_path / "new", "--gate", "speed=1%").returncode == 3
    assert trtbuild("bench", "--gate", "ttft_p50=1%").returncode == 2
    assert trtbuild("bench", "--concurrency", "0").returncode == 2


def test_the_table_and_the_pictures_show_the_summary(tmp_path: Path) -> None:
    records = [
        record(n, 40 * n, [30 + n * level, 50, 70], level=level, endpoint=name)
        for name in ("one", "two")
        for level in (1, 4)
        for n in range(6)
    ]
    records.append(record(6, 10, [], level=4, endpoint="two", error_kind=TIMEOUT, error="late"))
    runs = [
        run_of([r for r in records if (r.endpoint, r.level) == (name, level)])
        for name in ("one", "two")
        for level in (1, 4)
    ]
    write_run(tmp_path / "out", runs, records, force=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"timeline-{name}-concurrency{level}.png" for name in ("one", "two") for level in (1, 4)}
    pictures.add("latency_throughput.png")
    assert names == pictures | {"records.jsonl", "summary.json", "summary.md", "trtbuild.json"}
    from matplotlib.image import imread

    for name in pictures:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(tmp_path / "out" / name)
        assert pixels.shape[0] > 500
        assert pixels.std() > 0.01
    assert read_runs(tmp_path / "out") == json.loads(json.dumps(runs))
    kept = [record_of(json.loads(line)) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert kept == records
    curves(runs)
    bars(runs[3], plots.records_of(runs[3], records))
    text = (tmp_path / "out" / "summary.md").read_text()
    assert text == markdown(runs)
    row = next(line for line in text.splitlines() if line.startswith("| two") and "concurrency 4" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == f"{18 / 0.27:.1f}"
    assert cells[4] == f"{np.percentile([30 + n * 4 for n in range(6)], 50):.1f}"
    assert cells[-1] == "1 of 7"


def curves(runs: list[dict[str, Any]]) -> None:
    """The curves are the numbers of the summary."""
    above, below = plots.latency_throughput(runs).axes
    for axes, metric in ((above, "time_to_first_token"), (below, "inter_token_latency")):
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert len(lines) == 4
        for name in ("one", "two"):
            for stat in ("p50", "p99"):
                wanted = [
                    [run["output_token_throughput"]["avg"], run[metric][stat]]
                    for run in runs
                    if run["endpoint"] == name
                ]
                assert lines[f"{name}, {stat}"] == wanted


def bars(run: dict[str, Any], records: list[Any]) -> None:
    """A bar from when a request was due to its first token, one to its last, and a red one for the time-out."""
    above, below = plots.timeline(run, records).axes
    waiting, writing, failed = (part.get_segments() for part in above.collections)
    assert len(failed) == 1
    start = min(r.start_ns for r in records)
    for r, wait, write in zip(records, waiting, writing, strict=False):
        assert wait[:, 0].tolist() == [(r.start_ns - start) / 1e9, (r.first_ns - start) / 1e9]
        assert write[1, 0] == (r.last_ns - start) / 1e9
    rates = below.patches[0].get_data()
    assert (rates.values * np.diff(rates.edges)).sum() == pytest.approx(sum(r.output_tokens for r in records if r.ok))
