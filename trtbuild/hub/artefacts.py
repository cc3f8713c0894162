"""Artefacts on the Hugging Face hub: a repository of type model, of which every push is one commit."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from trtbuild.errors import HubError
from trtbuild.hub.snapshot import hub_id, translated
from trtbuild.progress import Progress


class HubPlace:
    """`hf://owner/name[@revision]`: the revision of a repository; for a push a branch."""

    def __init__(self, address: str) -> None:
        self.name = address
        self._repo, self._revision = hub_id(address.removeprefix("hf://").strip("/"), None)

    def files(self) -> dict[str, int]:
        """Size in bytes by path; nothing for a repository that is not there.

        Raises:
            HubError: the hub refused, or cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with translated(self._repo, self._revision):
            try:
                tree = list(HfApi().list_repo_tree(self._repo, recursive=True, revision=self._revision))
            except GatedRepoError:
                raise
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return {}
        # .gitattributes is the hub's own, and so is the card that people write.
        own = (".gitattributes", "README.md")
        return {item.path: item.size for item in tree if isinstance(item, RepoFile) and item.path not in own}

    def read(self, name: str) -> bytes:
        """A small file."""
        from huggingface_hub import hf_hub_download

        with translated(self._repo, self._revision):
            return Path(hf_hub_download(self._repo, name, revision=self._revision)).read_bytes()

    def put(self, folder: Path, names: Collection[str], stale: Collection[str], progress: Progress) -> None:
        """Upload `names` and delete `stale`, in one commit; a repository that is not there is made, and is private."""
        from huggingface_hub import HfApi

        api = HfApi()
        progress(0, 1, f"{self._repo}: the hub's own bars say how far it is")
        with translated(self._repo, self._revision):
            api.create_repo(self._repo, private=True, exist_ok=True)
            if self._revision:
                api.create_branch(self._repo, branch=self._revision, exist_ok=True)
            made = api.upload_folder(
                repo_id=self._repo,
                folder_path=folder,
                revision=self._revision,
                allow_patterns=[_literal(name) for name in names],
                delete_patterns=[_literal(name) for name in stale] or None,
                commit_message="Artefact of trtbuild",
            )
        progress(1, 1, made.oid)

    def fetch(self, names: Collection[str], folder: Path, progress: Progress) -> None:
        """Download files into `folder`."""
        from huggingface_hub import snapshot_download

        progress(0, 1, f"{self._repo}: the hub's own bars say how far it is")
        patterns = [_literal(name) for name in names]
        with translated(self._repo, self._revision):
            snapshot_download(self._repo, revision=self._revision, local_dir=folder, allow_patterns=patterns)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes about its downloads
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise HubError(f"{self.name} lacks {', '.join(sorted(missing))}")
        progress(1, 1, "")


def _literal(name: str) -> str:
    """A pattern that only this name fits."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
