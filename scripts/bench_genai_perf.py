"""The records of a benchmark through genai-perf's own parser: `python scripts/bench_genai_perf.py OUT GENAI_PERF`.

OUT is a directory of `trtbuild bench -o`, GENAI_PERF the folder `genai-perf` of triton-inference-server/perf_analyzer
(last read at 263c5f6; it wants transformers, pandas, tqdm). Each record becomes a request of its profile_export.json, a
word a token; the names, units and values that genai-perf makes of them are held against our summary.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trtbuild.bench.metrics import summary
from trtbuild.bench.record import PROFILING, Record, record_of


class Words:
    """A tokenizer that counts words."""

    def encode(self, text: str) -> list[str]:
        return text.split()

    def __call__(self, texts: list[str]) -> dict[str, list[list[str]]]:
        return {"input_ids": [text.split() for text in texts]}


def request(record: Record) -> dict[str, Any]:
    """As perf_analyzer exports it; every piece has one token here."""
    event = {"object": "text_completion", "choices": [{"text": " word"}]}
    pieces = [{"response": f"data: {json.dumps(event)}\n\n"} for _ in record.arrivals]
    assert len(pieces) == record.output_tokens, "pieces of several tokens cannot be told as text"
    return {
        "timestamp": record.start_ns,
        "request_inputs": {"payload": json.dumps({"prompt": ["word"] * (record.input_tokens or 0)})},
        "response_timestamps": [time for time, _ in record.arrivals],
        "response_outputs": pieces,
    }


def theirs(records: list[Record], objectives: dict[str, float]) -> dict[str, dict[str, Any]]:
    from genai_perf.profile_data_parser import LLMProfileDataParser

    experiment = {"experiment": {"mode": "concurrency", "value": 1}, "requests": [request(r) for r in records]}
    document = {"service_kind": "openai", "endpoint": "v1/completions", "experiments": [experiment]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile_export.json"
        path.write_text(json.dumps(document))
        found = LLMProfileDataParser(path, Words(), goodput_constraints=objectives).get_statistics("concurrency", "1")
    found.scale_data()
    return dict(found.stats_dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("genai_perf", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(options.genai_perf))
    records = [record_of(json.loads(line)) for line in (options.out / "records.jsonl").read_text().splitlines()]
    measured = [record for record in records if record.phase == PROFILING and record.ok]
    for key in dict.fromkeys((r.endpoint, r.mode, r.level) for r in measured):
        of_run = [r for r in measured if (r.endpoint, r.mode, r.level) == key]
        plain = summary(of_run)
        objectives = {
            "time_to_first_token": plain["time_to_first_token"]["p75"],
            "output_token_throughput_per_user": plain["output_token_throughput_per_user"]["p10"],
        }
        ours, wanted = summary(of_run, objectives), theirs(of_run, objectives)
        worst, count = 0.0, 0
        for name, values in wanted.items():
            assert ours[name]["unit"] == values["unit"], (name, ours[name]["unit"], values["unit"])
            for stat in values.keys() - {"unit"}:
                worst = max(worst, abs(ours[name][stat] - values[stat]) / max(abs(values[stat]), 1e-9))
                count += 1
        print(f"{key[0]}, {key[1]} {key[2]:g}: {count} values of {len(wanted)} metrics, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
