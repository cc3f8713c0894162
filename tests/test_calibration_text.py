"""Calibration samples: from every kind of text, chosen by the seed, all of one length; what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from tests.tiny import ROOT
from tests.worded import add_tokenizer, text_of
from trtbuild.calibrate.text import BUNDLED, Samples, read_samples
from trtbuild.errors import CalibrationError, EngineError, TrtbuildError
from trtbuild.spec import CalibrationOptions

TEMPLATE = "{% for m in messages %}t7 {{ m.role | replace('user', 't8') | replace('assistant', 't9') }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}t10{% endif %}"  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of words with a chat template."""
    made = add_tokenizer(tmp_path_factory.mktemp("tokenizer"), 1000)
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


def samples(folder: Path, text: Path | None, *, gram: bool = False, vocab_size: int = 1000, max_length: int = 0,
            **options: object) -> Samples:  # fmt: skip
    given = CalibrationOptions(text, **options)  # type: ignore[arg-type]
    return read_samples(folder, given, gram=gram, max_length=max_length, vocab_size=vocab_size)


def test_one_document_is_cut_in_order(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text(text_of(range(100, 150)))
    found = samples(folder, text, samples=4, length=10)
    assert found.ids == tuple(tuple(range(start, start + 10)) for start in (100, 110, 120, 130))
    numbers = [i for row in found.ids for i in row]
    assert found.described == {
        "text": "a.txt",
        "token_ids_sha256": hashlib.sha256(struct.pack(f"<{len(numbers)}i", *numbers)).hexdigest(),
        "samples": 4,
        "length": 10,
        "seed": 1234,
        "chat": False,
    }


@pytest.mark.parametrize("key", ["text", "article", "content"])
def test_rows_in_an_order_of_the_seed(key: str, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.jsonl"
    text.write_text("\n".join(json.dumps({"id": i, key: text_of([i] * 10)}) for i in range(20)) + "\n\n")
    orders = [[row[0] for row in samples(folder, text, samples=6, length=10, seed=seed).ids] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert all(len(set(order)) == 6 for order in orders)
    ranked = sorted(range(20), key=lambda i: hashlib.sha256(f"1:{i}".encode()).digest())
    assert orders[0] == ranked[:6]


def test_conversations_with_and_without_the_template(folder: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "t100"}, {"role": "assistant", "content": "t101 t102"}]
    text = tmp_path / "a.jsonl"
    text.write_text(json.dumps({"messages": said}))
    assert samples(folder, text, samples=1, length=7, chat=True).ids == ((7, 8, 100, 7, 9, 101, 102),)
    assert samples(folder, text, samples=1, length=3).ids == ((100, 101, 102),)
    text.write_text(json.dumps({"text": "t100 t101"}))
    assert samples(folder, text, samples=1, length=4, chat=True).ids == ((7, 8, 100, 101),)


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text(text_of([1] * 8))
    (tmp_path / "texts" / "deep" / "b.jsonl").write_text(json.dumps({"text": text_of([2] * 8)}))
    (tmp_path / "texts" / "c.md").write_text(text_of([3] * 8))
    assert {row[0] for row in samples(folder, tmp_path / "texts", samples=2, length=8).ids} == {1, 2}


def test_what_the_tokenizer_puts_first_begins_every_sample(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = add_tokenizer(tmp_path / "tokenizer", 100)
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.post_processor = TemplateProcessing(single="t5 $A", special_tokens=[("t5", 5)])
    fast.save(str(folder / "tokenizer.json"))
    text = tmp_path / "a.txt"
    text.write_text(text_of(range(20, 26)))
    assert samples(folder, text, samples=2, length=4).ids == ((5, 20, 21, 22), (5, 23, 24, 25))


def test_defaults(folder: Path, tmp_path: Path) -> None:
    """32 samples for AWQ, else 128; fewer where the text is short, but not less than 8; no more than the positions."""
    text = tmp_path / "a.txt"
    text.write_text(text_of([1, 2, 3, 4] * 16384))  # 65536 = 128 * 512
    assert [(len(found.ids), found.length) for found in (samples(folder, text), samples(folder, text, gram=True))] == [
        (128, 512), (32, 512)]  # fmt: skip
    assert samples(folder, text, max_length=256).length == 256
    text.write_text(text_of([1] * 512 * 9))
    assert len(samples(folder, text).ids) == 9
    text.write_text(text_of([1] * 512 * 7))
    with pytest.raises(CalibrationError, match="it has 3584 tokens, and 8 samples of 512 need 4096") as caught:
        samples(folder, text)
    assert "--calib-samples 7" in caught.value.hint


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_texts_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, dict[str, object], str]] = [
        (tmp_path / "none.txt", {}, "does not exist"),
        (write(tmp_path / "a.csv", b"x"), {}, r"unknown kind '\.csv'"),
        (write(tmp_path / "b.txt", b" \n\n"), {}, "is empty"),
        (write(tmp_path / "c.txt", b"good\nb\xffd"), {}, "is not UTF-8: line 2"),
        (write(tmp_path / "d.jsonl", b'{"text": "t1"}\n{"text"'), {}, "line 2 .* is not JSON"),
        (write(tmp_path / "e.jsonl", b'{"prompt": "t1", "answer": "x"}'), {},
         r"line 1 .*none of the keys text, messages, article, content \(it has: prompt, answer\)"),
        (write(tmp_path / "f.jsonl", b'{"text": 3}'), {}, "text is no text, but int"),
        (write(tmp_path / "g.jsonl", b'{"messages": [{"role": "user"}]}'), {}, "a role and a content"),
        (write(tmp_path / "h.txt", b"t1 t2"), {"samples": 3, "length": 2}, "has 2 tokens, and 3 samples of 2 need 6"),
        (write(tmp_path / "i.txt", b"t900 t2"), {"samples": 1, "length": 2, "vocab_size": 512}, "token id 900"),
        (write(tmp_path / "j.txt", b"t1 t2"), {"length": 64, "max_length": 32}, "longer than the model's 32 positions"),
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    cases.append((tmp_path / "empty", {}, "holds no .txt or .jsonl"))
    for path, options, said in cases:
        with pytest.raises(CalibrationError, match=said):
            samples(folder, path, **options)  # type: ignore[arg-type]


def test_tokenizers_that_are_not_there(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", b"t1 t2")
    (tmp_path / "m").mkdir()
    with pytest.raises(EngineError, match="holds no tokenizer"):
        samples(tmp_path / "m", text, samples=1, length=2)
    with pytest.raises(TrtbuildError, match="has no chat template"):
        samples(tmp_path / "m", text, samples=1, length=2, chat=True)


def test_the_bundled_text_is_not_the_held_out_one() -> None:
    held = (ROOT / "trtbuild" / "data" / "english.txt").read_text()
    text = BUNDLED.read_text()
    assert 150_000 < len(text) < 250_000
    passages = {held[at : at + 60] for at in range(len(held) - 60)}
    assert not any(text[at : at + 60] in passages for at in range(0, len(text) - 60))
