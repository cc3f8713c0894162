"""Rules of numbers: finite, positive, the same on every rank, zero where they pad. Reads through `data.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

from trtbuild.layout import DTYPE_BYTES, RankJobs, TensorInfo, Window
from trtbuild.lint import data
from trtbuild.lint.finding import WARNING, Finding, find
from trtbuild.lint.forms import Expected
from trtbuild.manifest import MANIFEST, sha256_file
from trtbuild.progress import Progress, silent

Headers = Dict[int, Dict[str, TensorInfo]]
_ADDED_NEGATIVE = 0.05  # share of negative elements beyond which a norm cannot hold weight + 1
_TABLE, _HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"
_SCALE = re.compile(r"\.(per_channel_scale|weights_scaling_factor)$")
_WRONG_SCALE = "An uncalibrated layer, or a cast that underflowed: quantize again."


def number_findings(
    headers: Headers, expected: Dict[int, Dict[str, Expected]], progress: Progress = silent
) -> list[Finding]:
    """NaN, infinities, scales that are not positive, weights that are all zero; every tensor is read once."""
    found: list[Finding] = []
    total, done = sum(info.nbytes for table in headers.values() for info in table.values()), 0
    for rank, table in headers.items():
        for name, info in table.items():
            progress(done, total, name)
            item = expected.get(rank, {}).get(name)
            if info.nbytes and info.dtype in DTYPE_BYTES:
                found += _numbers(name, info, item, rank)
            done += info.nbytes
    progress(done, total, "")
    return found


def _numbers(name: str, info: TensorInfo, item: Expected | None, rank: int) -> list[Finding]:
    wanted = item.values if item else "finite"
    if wanted == "bits":
        return []
    fp8 = info.dtype == "F8_E4M3" or (wanted == "fp8" and info.dtype == "I8")
    numbers = data.measure(info, fp8)
    if numbers.nonfinite:
        text = f"{numbers.nonfinite} of {numbers.count} elements"
        rule, what = ("fp8-nan", "no NaN byte (0x7f, 0xff)") if fp8 else ("tensor-nonfinite", "no NaN or infinity")
        hint = "Clamp to 448 before the cast: it does not saturate." if fp8 else "The source or the cast overflowed."
        return [find(rule, name, what, text, hint, rank)]
    zeros = numbers.count - numbers.nonzero
    if wanted == "positive" and (zeros or numbers.negative):
        text = f"{zeros} zero and {numbers.negative} negative of {numbers.count}"
        return [find("scale-not-positive", name, "positive numbers", text, _WRONG_SCALE, rank)]
    if wanted == "not negative" and numbers.negative:
        text = f"{numbers.negative} negative of {numbers.count}"
        return [find("scale-not-positive", name, "no negative number", text, _WRONG_SCALE, rank)]
    found = []
    if wanted in ("weight", "fp8") and not numbers.nonzero:
        found.append(find("tensor-zero", name, "a weight", "zeros only", "Was it ever written?", rank))
    added = item is not None and item.job is not None and item.job.add
    if added and numbers.negative > _ADDED_NEGATIVE * numbers.count:
        text = f"{numbers.negative} of {numbers.count} elements are negative"
        hint = "This class stores Hugging Face's norm weight + 1."
        found.append(find("norm-offset", name, "weight + 1, rarely negative", text, hint, rank))
    return found


def copy_findings(
    ranks: Sequence[RankJobs], headers: Headers, expected: Dict[int, Dict[str, Expected]]
) -> list[Finding]:
    """Windows of the model that several ranks hold (norms, biases, repeated kv heads) must be the same bytes."""
    holders: dict[Any, list[tuple[int, str, int, int]]] = {}
    found: list[Finding] = []
    for rank in ranks:
        for name, item in expected.get(rank.rank, {}).items():
            info = headers.get(rank.rank, {}).get(name)
            if info is None or not info.nbytes or info.shape not in item.shapes or info.dtype not in item.dtypes:
                continue
            if item.job is None and item.same:
                key = (rank.pp_rank, name)
                holders.setdefault(key, []).append((rank.rank, name, info.start, info.stop))
            for key, start, stop in _windows(item, info):
                if key:
                    holders.setdefault((rank.pp_rank, name, *key), []).append((rank.rank, name, start, stop))
                else:
                    found += _zero(item, info, rank.rank, start, stop)
    for places in holders.values():
        if len({place[0] for place in places}) > 1:
            found += _copies(places, headers, expected)
    return found


def _windows(item: Expected, info: TensorInfo) -> Iterator[tuple[tuple[Any, ...], int, int]]:
    """(what it is: source, rows, columns, or () for zeros; byte range in the file) of a plain tensor's row blocks."""
    if item.job is None:
        return
    width = (info.shape[-1] if len(info.shape) > 1 else 1) * DTYPE_BYTES[info.dtype]
    at = info.start
    for piece in item.job.pieces:
        for start, stop in piece.rows:
            end = at + (stop - start) * width
            if end > at:
                yield (piece.source, start, stop, piece.cols) if piece.source else (), at, end
            at = end
    if at < info.stop:
        yield (), at, info.stop


def _zero(item: Expected, info: TensorInfo, rank: int, start: int, stop: int) -> list[Finding]:
    if data.is_zero(info.file, start, stop):
        return []
    job = item.job
    if job is not None and any(not piece.source for piece in job.pieces):
        hint = "Only the first rank holds it: the ranks' sum would have it once for each of them."
        return [find("bias-not-zero", item.name, "zeros on this rank", "other numbers", hint, rank)]
    return [find("padding-not-zero", item.name, "zeros in the rows beyond vocab_size", "other numbers", "", rank)]


def _copies(
    places: list[tuple[int, str, int, int]], headers: Headers, expected: Dict[int, Dict[str, Expected]]
) -> list[Finding]:
    first, *others = places
    found = []
    digests = {place: data.digest(headers[place[0]][place[1]].file, *place[2:]) for place in places}
    for place in others:
        rank, name = place[0], place[1]
        if digests[place] != digests[first] and rank != first[0]:
            plain = expected[rank][name].job is not None
            text = f"the bytes of rank {first[0]}"
            hint = "The rank files come from different runs, or kv heads were repeated in another order."
            found.append(find("copies-differ", name, text, "others", hint, rank, "" if plain else WARNING))
    return found


def tied_findings(
    ranks: Sequence[RankJobs], headers: Headers, expected: Dict[int, Dict[str, Expected]]
) -> list[Finding]:
    """lm_head of a tied model against the vocabulary table, wherever their shares overlap."""
    shares: dict[str, list[tuple[int, TensorInfo, Window, Window]]] = {_TABLE: [], _HEAD: []}
    for rank in ranks:
        for name, found in shares.items():
            item, info = expected.get(rank.rank, {}).get(name), headers.get(rank.rank, {}).get(name)
            if item is None or item.job is None or info is None or info.shape not in item.shapes:
                continue
            piece = item.job.pieces[0]
            found.append((rank.rank, info, piece.rows[0], piece.cols or (0, info.shape[-1])))
    findings = []
    for rank_of_head, head, rows, cols in shares[_HEAD]:
        for _, table, table_rows, table_cols in shares[_TABLE]:
            if head.dtype != table.dtype or not _same(head, rows, cols, table, table_rows, table_cols):
                hint = "config.json says that the embeddings are tied; one of the two is wrong."
                findings.append(find("tied-lm-head", _HEAD, f"the rows of {_TABLE}", "others", hint, rank_of_head))
                break
    return findings


def _same(head: TensorInfo, rows: Window, cols: Window, table: TensorInfo, t_rows: Window, t_cols: Window) -> bool:
    top, bottom = max(rows[0], t_rows[0]), min(rows[1], t_rows[1])
    left, right = max(cols[0], t_cols[0]), min(cols[1], t_cols[1])
    if top >= bottom or left >= right:
        return True
    size = DTYPE_BYTES[head.dtype]
    views = [
        data.rectangle(info)[top - r[0] : bottom - r[0], (left - c[0]) * size : (right - c[0]) * size]
        for info, r, c in ((head, rows, cols), (table, t_rows, t_cols))
    ]
    return data.same_rectangles(*views)


def scale_pair_findings(headers: Headers, expected: Dict[int, Dict[str, Expected]]) -> list[Finding]:
    """fp8 scales of fc and gate are equal; prequant scales are one row for all experts."""
    found = []
    for rank, table in headers.items():
        for name, info in table.items():
            item = expected.get(rank, {}).get(name)
            if item is None or info.shape not in item.shapes or info.dtype not in item.dtypes:
                continue
            gate = table.get(name.replace(".fc.", ".gate."))
            fp8 = expected[rank].get(name.replace("weights_scaling_factor", "weight"))
            pair = name.endswith(".fc.weights_scaling_factor") and fp8 and fp8.values == "fp8" and gate
            if pair and gate and _as(gate) == _as(info) and any(data.values(info) != data.values(gate)):
                text, hint = "another scale in mlp.gate", "Quantize both by the larger scale."
                found.append(find("fp8-gate-scale", name, "the scale of mlp.gate", text, hint, rank))
            if name.endswith("prequant_scaling_factor") and len(info.shape) == 2:
                rows = data.values(info).reshape(info.shape)
                if (rows != rows[:1]).any():
                    text = "rows that differ"
                    found.append(find("prequant-experts", name, "one row, repeated for every expert", text, "", rank))
    return found


def zero_scale_findings(headers: Headers, expected: Dict[int, Dict[str, Expected]]) -> list[Finding]:
    """Scales of 0 where a form has them for what is all zeros: an error over other weights.

    Weights in a kernel's layout are not read: there it is a warning, and an error where the zero point is not 0.
    """
    import numpy as np

    found = []
    for rank, table in headers.items():
        for name, info in table.items():
            item = expected.get(rank, {}).get(name)
            if item is None or item.values != "not negative" or info.shape not in item.shapes:
                continue
            dead = data.values(info) == 0 if info.dtype in item.dtypes else np.zeros(0, bool)
            if not dead.any():
                continue
            weight, zero = (table.get(_SCALE.sub(end, name)) for end in (".weight", ".zero"))
            severity, live = WARNING, dead
            if weight and weight.dtype == "I8" and weight.shape[:-1] == (dead.size,):
                severity, live = "", dead & data.rectangle(weight).any(axis=1)
            elif zero and _as(zero) == _as(info) and (data.values(zero)[dead] != 0).any():
                severity, live = "", dead & (data.values(zero) != 0)
            if live.any():
                what = (
                    "over weights that are not zeros" if not severity else "which only weights that are all zeros have"
                )
                text = f"{np.count_nonzero(live)} zero of {dead.size}, {what}"
                found.append(find("scale-not-positive", name, "positive numbers", text, _WRONG_SCALE, rank, severity))
    return found


def _as(info: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return info.dtype, info.shape


def manifest_findings(folder: Path, manifest: Dict[str, Any]) -> list[Finding]:
    """Files whose SHA-256 is not what trtbuild.json recorded when it made them."""
    table = manifest.get("files")
    found = []
    for name, wanted in table.items() if isinstance(table, dict) else ():
        path = folder / str(name)
        if ".." in Path(str(name)).parts or not path.is_relative_to(folder) or not path.is_file():
            continue
        actual = sha256_file(path)
        if actual != wanted:
            hint = f"The file was changed or damaged after trtbuild wrote it. If that is meant, remove {MANIFEST}."
            found.append(
                find("manifest-digest", str(name), f"SHA-256 {str(wanted)[:12]}...", f"{actual[:12]}...", hint)
            )
    return found
