"""Opens a place by its address: a store to keep artifacts in, or a source to read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from bricks_core.errors import DataError, SpecError, StoreDenied
from bricks_core.storage.folder import FolderStore, source_files
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import SourceFile, Store, check_prefix

_ROOTS = ("runs", "artifacts", "items", "tries", "claims", "takedowns")
"""What a store holds; beside it weights that were imported under other names."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def open_store(uri: str) -> Store:
    """Open a folder (`some/folder`, `file:///some/folder`) or `s3://bucket/prefix`.

    A folder is made by the first `put`, its parent must be there; a bucket must be there. S3's endpoint, keys and
    region come from the standard AWS_* settings. SpecError: the URI is no such thing.
    """
    scheme, rest = split_uri(uri)
    try:
        rest.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{uri!r} is no place for a store: its name is not UTF-8. Name it otherwise.") from None
    if scheme == "s3":
        from bricks_core.storage.s3 import S3Store  # boto3 takes most of a second to import

        bucket, prefix = _split_s3(uri, rest)
        check_prefix(prefix)
        return S3Store(uri, bucket, prefix)
    return FolderStore(uri, Path(rest))


def open_existing(uri: str, wanted: str = "") -> Store:
    """The store at `uri`, for whoever would only look at what is there, such as `wanted`. It may be empty.

    StoreDenied: there is no such folder, or what is there is something else. DataError: the folder is not there, and so
    what is wanted is not. SpecError: the URI is no place.
    """
    scheme, rest = split_uri(uri)
    if scheme == "file":
        with told(Path(rest), "read"):
            if not Path(rest).exists() and wanted:
                raise DataError(f"There is no store {uri}, and so no {wanted} in it: correct --store.")
            if not Path(rest).exists():
                raise StoreDenied(f"There is no store {uri}: correct --store, or make one with bricks run FILE.")
    store = open_store(uri)
    if not any(_begins(store, f"{root}/") for root in _ROOTS) and (other := _begins(store, "")):
        raise StoreDenied(
            f"No run has been in {uri}: it has none of {', '.join(f'{root}/' for root in _ROOTS)}, but other files, "
            f"such as {other}. Correct --store."
        )
    return store


def _begins(store: Store, prefix: str) -> str:
    """The first key that begins so; empty when there is none."""
    return next((entry.key for entry in store.list(prefix)), "")


def list_source(uri: str) -> Iterator[SourceFile]:
    """The files of a source, sorted by name: a file, a folder with all its folders, or an S3 object or prefix.

    Hidden files and folders (a name beginning with a dot) are left out, and so is what is no regular file.
    SpecError: nothing is there. StoreDenied, StoreUnavailable: it cannot be read.
    """
    scheme, rest = split_uri(uri)
    if scheme == "s3":
        from bricks_core.storage.s3 import source_objects  # the same

        bucket, prefix = _split_s3(uri, rest)
        return source_objects(uri, bucket, prefix)
    return source_files(uri, Path(rest))


def split_uri(uri: str) -> tuple[str, str]:
    """-> ("s3", "bucket/prefix") or ("file", path). SpecError: it is neither."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if match is None:
        if not uri or "\0" in uri:
            raise SpecError(f"{uri!r} is no place: write a folder, file:///folder or s3://bucket/prefix.")
        return "file", str(Path(os.path.expanduser(uri)))  # Path's own raises where nobody has that name
    scheme, rest = match[1].lower(), uri[match.end() :]
    if scheme == "s3":
        return "s3", rest
    path = unquote(rest.removeprefix("localhost"))
    if scheme == "file" and path.startswith("/") and "\0" not in path:
        return "file", path
    shown = re.sub(r"//[^/@]*@", "//", uri)
    raise SpecError(f"{shown!r} is no place known here: write a folder, file:///folder or s3://bucket/prefix.")


def _split_s3(uri: str, rest: str) -> tuple[str, str]:
    """`bucket/some/prefix/` -> `("bucket", "some/prefix")`."""
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:  # not shown: what stands before the @ is a secret
        raise SpecError(
            "An s3:// address must not hold keys (there is an @ in its bucket): "
            "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."
        )
    if not _BUCKET.fullmatch(bucket):
        raise SpecError(f"{uri!r} names no bucket: write s3://bucket/prefix.")
    return bucket, prefix.strip("/")
