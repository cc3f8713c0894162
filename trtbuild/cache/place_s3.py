"""Artefacts in an S3-compatible store, by boto3. EDGE.

Credentials, region and endpoint are found by boto3's own rules: AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtbuild.errors import RemoteError
from trtbuild.manifest import MANIFEST
from trtbuild.progress import Progress

_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403", "Forbidden")


class S3Place:
    """`s3://bucket/prefix`: objects whose keys begin with the prefix and a slash."""

    def __init__(self, address: str) -> None:
        self.name = address
        self._bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        if not self._bucket:
            raise RemoteError(f"{address} names no bucket", hint="Write it as s3://bucket/prefix.")
        try:
            import boto3  # noqa: F401  before anything is read or sent
        except ImportError as error:
            raise RemoteError("s3:// needs boto3", hint="pip install trtbuild[s3]") from error
        self._connected: Any = None

    def files(self) -> dict[str, int]:
        """Size in bytes by path below the prefix.

        Raises:
            RemoteError: no such bucket, no access, or no connection.
        """
        with self._translated():
            pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            found = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"][len(self._prefix) :]: item["Size"] for item in found if not item["Key"].endswith("/")}

    def read(self, name: str) -> bytes:
        """A small object."""
        with self._translated():
            content: bytes = self._client().get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
        return content

    def put(self, folder: Path, names: Collection[str], stale: Collection[str], progress: Progress) -> None:
        """Upload, the manifest last; what is replaced loses its own first, as without one there is no artefact."""
        client, count = self._client(), _counted({name: (folder / name).stat().st_size for name in names}, progress)
        with self._translated():
            client.delete_object(Bucket=self._bucket, Key=self._prefix + MANIFEST)
            for name in sorted(names, key=lambda name: (name == MANIFEST, name)):
                client.upload_file(str(folder / name), self._bucket, self._prefix + name, Callback=count)
            for name in stale:
                client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def fetch(self, names: Collection[str], folder: Path, progress: Progress) -> None:
        """Download; each file is under another name until it is complete."""
        there = self.files()
        client, count = self._client(), _counted({name: there.get(name, 0) for name in names}, progress)
        with self._translated():
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                client.download_file(self._bucket, self._prefix + name, str(folder / name), Callback=count)

    def _client(self) -> Any:
        if self._connected is None:
            import boto3

            with self._translated():
                self._connected = boto3.session.Session().client("s3")
        return self._connected

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Every failure of boto3 as one sentence with a remedy."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except NoCredentialsError as error:
            hint = "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            raise RemoteError(f"{self.name}: no credentials for S3 were found", hint=hint) from error
        except ClientError as error:
            raise self._refused(error.response.get("Error", {})) from error
        except Boto3Error as error:  # of an upload: it wraps the one above in words
            code = next((code for code in ("NoSuchBucket", *_DENIED) if code in str(error)), "")
            raise self._refused({"Code": code, "Message": str(error)}) from error
        except BotoCoreError as error:
            hint = "Check the network, AWS_ENDPOINT_URL and AWS_REGION, and try again."
            raise RemoteError(f"{self.name} cannot be reached: {error}", hint=hint) from error

    def _refused(self, said: dict[str, Any]) -> RemoteError:
        code = str(said.get("Code", ""))
        if code == "NoSuchBucket":
            return RemoteError(
                f"{self.name}: there is no bucket {self._bucket}", hint="Make it first, or check its name."
            )
        if code in _DENIED:
            hint = "Check the credentials, and what they may do with the bucket."
            return RemoteError(f"{self.name}: access was denied ({code})", hint=hint)
        return RemoteError(f"{self.name}: the store refused: {said.get('Message') or code}")


def _counted(sizes: dict[str, int], progress: Progress) -> Any:
    """A callback for boto3, which calls it with bytes, from several threads."""
    total, done, one = sum(sizes.values()) or 1, [0], threading.Lock()

    def count(more: int) -> None:
        with one:
            done[0] += more
            progress(min(done[0], total), total, "")

    progress(0, total, "")
    return count
