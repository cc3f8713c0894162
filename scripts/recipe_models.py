"""Write names, dtypes and shapes of the tensors of the recipes' models to tests/data/recipes/*/tensors.json.gz.

    python scripts/recipe_models.py [--index MODEL=model.safetensors.index.json ...]

Each folder of tests/data/recipes/ holds the config.json of a real model. transformers' own class is built from it on
the meta device, and its state is brought to the names that are saved (fused experts apart again, tied tensors once).
Where a real index is given, its names and its total_size must be the same. sources.json beside the folders says where
each config.json was found and which published total_size the sum of all tensors was compared with.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "recipes"
DTYPES = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32"}


def main() -> None:
    """Write one file for each model; ends with an error where a real index or a published size disagrees."""
    parser = argparse.ArgumentParser(description="Write tensor names, dtypes and shapes of the recipes' models.")
    parser.add_argument("--index", action="append", default=[], metavar="MODEL=FILE", help="a real index to compare")
    given = dict(text.split("=", 1) for text in parser.parse_args().index)
    sources = json.loads((FOLDER / "sources.json").read_text())
    for path in sorted(FOLDER.glob("*/config.json")):
        name = path.parent.name
        index = json.loads(Path(given[name]).read_text()) if name in given else None
        tensors, total = saved_tensors(path.parent, set(index["weight_map"]) if index else set())
        published = sources[name]["total_size"]
        if published is not None and published != total:
            sys.exit(f"error: {name}: the tensors have {total} bytes, but {published} were published")
        if index:
            _compare(name, tensors, total, index)
        text = json.dumps(tensors, separators=(",", ":")).encode()
        (path.parent / "tensors.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))
        print(f"{name}: {len(tensors)} tensors, {total} bytes" + (", as published" if published else ""))


def saved_tensors(folder: Path, known: set[str]) -> tuple[dict[str, list[Any]], int]:
    """(name -> [dtype, shape] as save_pretrained would write them, bytes of all) for the config.json of `folder`.

    A tied tensor is left out, but for one of `known`: names that the real index has all the same (Falcon).
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = set(model.all_tied_weights_keys) - known if config.tie_word_embeddings else set()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    saved = revert_weight_conversion(model, state)
    tensors = {name: [DTYPES[str(saved[name].dtype)], list(saved[name].shape)] for name in sorted(saved)}
    return tensors, sum(tensor.numel() * tensor.element_size() for tensor in saved.values())


def _compare(name: str, tensors: dict[str, list[Any]], total: int, index: dict[str, Any]) -> None:
    names = set(index["weight_map"])
    if names != set(tensors):
        sys.exit(f"error: {name}: not both in the index and the model: {sorted(names ^ set(tensors))[:8]}")
    if index["metadata"]["total_size"] != total:
        sys.exit(f"error: {name}: the index has {index['metadata']['total_size']} bytes, the model {total}")


if __name__ == "__main__":
    main()
