"""Resolves a model name: an existing folder wins, else it is a Hugging Face hub id. The only user of huggingface_hub.

Honours HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE, since the hub's own client reads them.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbuild.errors import CheckpointError, HubError
from trtbuild.layout import TensorInfo

PATTERNS = (
    "config.json",
    "hf_quant_config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
"""Files of a repository that are fetched: no pickles, no other frameworks."""
QUANT_CONFIG = "hf_quant_config.json"
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_IGNORED = ("*/*", "consolidated*")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelSource:
    """A model folder; `repo_id` and `revision` (the commit) are None for one that did not come from the hub."""

    path: Path
    repo_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class ModelHeaders:
    """What planning needs of a hub model: its config and its tensors; no weight is on this machine."""

    config: dict[str, Any]
    index: dict[str, TensorInfo]
    repo_id: str
    revision: str
    quant_config: dict[str, Any] | None = None
    """hf_quant_config.json of a model that NVIDIA ModelOpt quantized."""


def resolve_model(model: str, revision: str | None = None, *, allow_pickle: bool = False) -> ModelSource:
    """The folder of `model`: a local folder (`local:` forces that), or `org/name[@revision]` (`hf:` forces that).

    `allow_pickle` also fetches PyTorch's .bin files of a repository without safetensors.

    Raises:
        HubError: not found, gated, offline, or the network fails.
        CheckpointError: a local folder that does not exist.
    """
    folder = local_folder(model)
    if folder is not None:
        return ModelSource(folder)
    repo, wanted = hub_id(model, revision)
    from huggingface_hub import snapshot_download

    def fetch(patterns: tuple[str, ...]) -> Path:
        with translated(repo, wanted):
            found = snapshot_download(
                repo, revision=wanted, allow_patterns=list(patterns), ignore_patterns=list(_IGNORED)
            )
        return Path(found)

    path = fetch(PATTERNS)
    if allow_pickle and not any(path.glob("*.safetensors")):
        path = fetch(PATTERNS + _PICKLES)
    if not (path / "config.json").is_file():
        raise HubError(f"{repo} has no config.json: it is not a transformers model, or its download is incomplete")
    return ModelSource(path, repo, path.name)


def resolve_headers(model: str, revision: str | None = None) -> ModelSource | ModelHeaders:
    """As `resolve_model`, but a hub model is not downloaded: config and safetensors headers only.

    Offline, the cached snapshot is used as a folder.
    """
    folder = local_folder(model)
    if folder is not None:
        return ModelSource(folder)
    repo, wanted = hub_id(model, revision)
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return resolve_model(model, revision)
    api = HfApi()
    with translated(repo, wanted):
        commit = api.model_info(repo, revision=wanted).sha or wanted
        config = json.loads(Path(hf_hub_download(repo, "config.json", revision=commit)).read_text(encoding="utf-8"))
        quant_config = None
        if api.file_exists(repo, QUANT_CONFIG, revision=commit):
            text = Path(hf_hub_download(repo, QUANT_CONFIG, revision=commit)).read_text(encoding="utf-8")
            quant_config = json.loads(text)
        metadata = api.get_safetensors_metadata(repo, revision=commit)
    index = {
        name: TensorInfo(name, str(t.dtype), tuple(t.shape), Path(file), t.data_offsets[0], t.data_offsets[1])
        for file, header in metadata.files_metadata.items()
        for name, t in header.tensors.items()
    }
    return ModelHeaders(config, index, repo, commit or "", quant_config)


def local_folder(model: str) -> Path | None:
    """The folder that `model` names, or None for a hub id.

    Raises:
        CheckpointError: it can only be a path, and there is no such folder.
    """
    if model.startswith("hf:"):
        return None
    path = Path(model.removeprefix("local:")).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the model's folder")
    if model.startswith("local:") or not _ID.fullmatch(model.partition("@")[0]):
        hint = "Give a folder with config.json and *.safetensors, or a hub id such as org/name."
        raise CheckpointError(f"no model folder {path}", hint=hint)
    return None


def hub_id(model: str, revision: str | None) -> tuple[str, str | None]:
    """(repo id, revision) of `[hf:]org/name[@revision]`; an explicit `revision` must not contradict the one inside."""
    repo, _, inside = model.removeprefix("hf:").partition("@")
    if not _ID.fullmatch(repo):
        raise HubError(f"{repo!r} is no hub id", hint="Write it as org/name or org/name@revision.")
    if inside and revision and inside != revision:
        raise HubError(f"two revisions were asked for: {inside} and {revision}")
    return repo, revision or inside or None


@contextmanager
def translated(repo: str, revision: str | None) -> Iterator[None]:
    """Every failure of the hub client as one sentence with a remedy."""
    from huggingface_hub import constants, errors

    at = f"{repo}@{revision}" if revision else repo
    # The HTTP library's own base error, whichever one the installed client uses.
    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at {constants.ENDPOINT}/{repo}, then set HF_TOKEN or run `hf auth login`."
        raise HubError(f"{repo} is gated: your account has no access to it", hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{repo} has no revision {revision}", hint="Give a branch, tag or commit that exists."
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "Check the spelling; for a private model set HF_TOKEN or run `hf auth login`."
        raise HubError(f"the hub has no model {repo}, or it is private", hint=hint) from error
    except errors.NotASafetensorsRepoError as error:
        raise HubError(f"{repo} has no safetensors weights", hint="Choose a model saved as safetensors.") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(at, error) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{at} lacks a file that is needed: {_line(error)}") from error
    except (OSError, transport) as error:  # HfHubHTTPError and OfflineModeIsEnabled are OSErrors
        if isinstance(error, OSError) and error.errno in _DISK:
            message = f"{at} cannot be stored in the hub's cache: {error.strerror} ({error.filename})"
            raise HubError(message, hint="Make room, or set HF_HOME to another place.") from error
        raise _unreachable(at, error) from error
    except (errors.SafetensorsParsingError, ValueError) as error:
        raise HubError(f"{at} cannot be read: {_line(error)}") from error


def _unreachable(at: str, error: Exception) -> HubError:
    """Offline by choice, refused with a status, or no network."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        hint = "Unset HF_HUB_OFFLINE, or fetch the model once while online."
        return HubError(f"HF_HUB_OFFLINE is set and {at} is not in the cache", hint=hint)
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and inner not in chain:
        chain.append(inner)
    status = next((e.response.status_code for e in chain if getattr(e, "response", None) is not None), None)  # type: ignore[attr-defined]
    if status in (401, 403):
        hint = "Set HF_TOKEN to a token that may read this model."
        return HubError(f"the hub refused {at} (HTTP {status})", hint=hint)
    reason = f"HTTP {status}" if status else _line(chain[-1])
    hint = "Check the network and HF_ENDPOINT, try again, or give a local folder."
    return HubError(f"the hub cannot be reached for {at}: {reason}", hint=hint)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
