"""A store in S3, or in anything that speaks it. Retries within a request are botocore's.

An S3 object appears whole or not at all by itself. What needs care: `If-None-Match: *`, on which "one winner" rests,
is not known to every server that speaks S3, and those that do not know it ignore it in silence.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from bricks_core.errors import AlteredObject, NoSuchObject, SpecError, StoreDenied, TryLater
from bricks_core.spec.manifest import StoredObject
from bricks_core.storage.hashes import CACHE, sha256_of_file
from bricks_core.storage.in_flight import in_flight
from bricks_core.storage.os_errors import told as told_of_disk
from bricks_core.storage.s3_errors import ABSENT, check_answer, code_of, no_bucket, status_of, told
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import LEFTOVER_IDLE_S, Entry, SourceFile, Store, check_key, check_prefix, is_key

CONNECT_TIMEOUT_S = 4  # with four attempts and the pauses between, a dead endpoint is told after about 20 s
READ_TIMEOUT_S = 30
NUM_ATTEMPTS = 4
PART_BYTES = 16 << 20
_MAX_PARTS = 9_000  # S3's limit is 10,000
_CHUNK_BYTES = 1 << 20
_PROBE = ".conditional-put"  # a hidden key: no listing shows it
_NOT_TOGETHER = {"MissingContentMD5", "InvalidRequest", "NotImplemented", "MethodNotAllowed", "MalformedPOSTRequest"}
"""What servers answer to DeleteObjects that want a Content-MD5, which botocore no longer sends, or do not know it."""
_ONE_BY_ONE: set[tuple[str, str]] = set()
"""(endpoint, bucket) where objects are deleted one by one."""


class S3Store(Store):
    """Objects in a bucket, under a prefix."""

    max_at_once = 32

    def __init__(self, uri: str, bucket: str, prefix: str):
        self.uri = uri
        self._bucket = _Bucket(bucket)
        self._prefix = f"{prefix}/" if prefix else ""
        self._can_put_first = False

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, str, str]]:
        return S3Store, (self.uri, self._bucket.name, self._prefix.removesuffix("/"))

    def get(self, key: str) -> bytes:
        return self._bucket.read(self._full(key), key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        full = self._full(key)
        if if_absent:
            self._need_conditional_put()
            return self._bucket.put_first(full, data, key)
        self._bucket.put(full, data, key)
        return True

    def put_file(self, key: str, path: Path) -> StoredObject:
        full = self._full(key)
        with told_of_disk(path, "read"), path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes <= PART_BYTES:
                data = file.read()
                self._bucket.put(full, data, key)
                return StoredObject(key=key, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            hashed = _Hashed(file)
            self._bucket.put_parts(full, hashed, size_bytes, key)
        stored = StoredObject(key=key, size_bytes=hashed.size_bytes, sha256=hashed.digest.hexdigest())
        self._bucket.remember(full, stored)
        return stored

    @contextmanager
    def local(self, key: str, *, sha256: str | None = None) -> Iterator[Path]:
        with self._bucket.downloaded(self._full(key), key) as path:
            if sha256 is not None and sha256_of_file(path) != sha256:
                raise AlteredObject(key, f"was altered: its sha256 is not {sha256[:12]}….")
            yield path

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for found in self._bucket.objects(self._prefix + check_prefix(prefix)):
            key = found.full.removeprefix(self._prefix)
            if is_key(key):
                yield Entry(key, found.size_bytes, found.etag, found.modified_s)

    def head(self, key: str) -> Entry | None:
        found = self._bucket.head(self._full(key), key)
        return None if found is None else Entry(key, found.size_bytes, found.etag, found.modified_s)

    def delete(self, keys: Iterable[str]) -> int:
        num_keys, rest = 0, iter(keys)
        while batch := [self._full(key) for key in islice(rest, 1000)]:
            self._bucket.delete(batch)
            num_keys += len(batch)
        return num_keys

    def sha256(self, key: str) -> str:
        return self._bucket.sha256(self._full(key), key)

    def known_sha256(self, entry: Entry) -> str | None:
        return self._bucket.known_sha256(self._full(entry.key), entry.etag)

    def sweep(self, *, idle_s: float = LEFTOVER_IDLE_S) -> int:
        return self._bucket.abort_uploads(self._prefix, datetime.now(UTC) - timedelta(seconds=idle_s))

    def _full(self, key: str) -> str:
        return check_key(self._prefix + check_key(key))

    def _need_conditional_put(self) -> None:
        """Once a process: write a hidden key that must not be there twice.

        Some servers ignore `If-None-Match`; there, two writers would both believe to be first.
        """
        if self._can_put_first:
            return
        for _ in range(2):  # the first may be the one that makes it
            if not self._bucket.put_first(self._prefix + _PROBE, b"", _PROBE):
                self._can_put_first = True
                return
        raise StoreDenied(
            f"{self._bucket.place} ignores If-None-Match, so two writers could overwrite each other's work. "
            "Use a server that knows conditional writes, or a folder."
        )


class _Object(NamedTuple):
    """An object of a bucket."""

    full: str
    """The whole key, prefix included."""
    size_bytes: int
    etag: str
    modified_s: float


class _Bucket:
    """The requests to one bucket. `key` beside `full` is the name a user knows the object by, for errors."""

    def __init__(self, name: str):
        self.name = name
        self._is_there = False

    @property
    def client(self) -> Any:
        """This process's client for the settings of now: a boto3 client serves many threads, but survives no fork."""
        settings = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
        with _making:
            return _client(os.getpid(), settings)

    @property
    def place(self) -> str:
        return f"bucket {self.name} at {_shown(self.client)}"

    def read(self, full: str, key: str) -> bytes:
        content = io.BytesIO()

        def anew() -> Callable[[bytes], object]:
            content.seek(0)
            content.truncate()
            return content.write

        self._stream(full, key, anew)
        return content.getvalue()

    def sha256(self, full: str, key: str) -> str:
        found = self.head(full, key)
        known = None if found is None else self.known_sha256(full, found.etag)
        if known is not None:
            return known
        digest = hashlib.sha256()

        def anew() -> Callable[[bytes], object]:
            nonlocal digest
            digest = hashlib.sha256()
            return digest.update

        etag = self._stream(full, key, anew)
        self._remember(full, etag, digest.hexdigest())
        return digest.hexdigest()

    def known_sha256(self, full: str, etag: str) -> str | None:
        return CACHE.recall(self._cache_name(full), etag)

    def put(self, full: str, data: bytes, key: str) -> None:
        with self._told("write", key):
            answer = self.client.put_object(Bucket=self.name, Key=full, Body=data)
        self._remember(full, answer["ETag"].strip('"'), hashlib.sha256(data).hexdigest())

    def put_first(self, full: str, data: bytes, key: str) -> bool:
        """Put if there is nothing yet; False when there is."""
        me = uuid.uuid4().hex
        for attempt in range(20):
            with self._told("write", key):
                try:
                    self.client.put_object(
                        Bucket=self.name, Key=full, Body=data, IfNoneMatch="*", Metadata={"bricks-writer": me}
                    )
                    return True
                except ClientError as error:
                    if code_of(error) == "PreconditionFailed" or status_of(error) == 412:
                        # After a retry it may be our own first attempt that stands in the way: its answer got lost.
                        retried = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
                        return retried and self._writer_of(full) == me
                    if status_of(error) != 409:  # somebody is writing the same: it may yet fail, so ask again
                        raise
            time.sleep(min(0.05 * 2**attempt, 1.0))
        raise TryLater(f"Cannot write {key} in {self.place}: others write it, and none finishes. Start again later.")

    def put_parts(self, full: str, content: _Hashed, size_bytes: int, key: str) -> None:
        part_bytes = max(PART_BYTES, -(-size_bytes // _MAX_PARTS))
        with self._told("write", key):
            self.client.upload_fileobj(content, self.name, full, Config=_transfer(part_bytes))

    @contextmanager
    def downloaded(self, full: str, key: str) -> Iterator[Path]:
        with scratch() as folder:
            path = folder / f"object{Path(full).suffix}"
            with told_of_disk(path, "write"), self._told("read", key):
                self.client.download_file(self.name, full, str(path), Config=_transfer(PART_BYTES))
            yield path

    def objects(self, prefix: str) -> Iterator[_Object]:
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix))
        while True:
            with self._told("list"):
                page = next(pages, None)
            if page is None:
                return
            for each in page.get("Contents", []):
                yield _Object(each["Key"], each["Size"], each["ETag"].strip('"'), each["LastModified"].timestamp())

    def head(self, full: str, key: str) -> _Object | None:
        with self._told("read", key):
            try:
                found = self.client.head_object(Bucket=self.name, Key=full)
            except ClientError as error:
                if code_of(error) not in ABSENT:
                    raise
                self._need_bucket()
                return None
        return _Object(full, found["ContentLength"], found["ETag"].strip('"'), found["LastModified"].timestamp())

    def delete(self, fulls: list[str]) -> None:
        """Up to 1,000 objects by one request; where the server knows no such request of ours, by one for each."""
        here = (str(self.client.meta.endpoint_url), self.name)
        if here not in _ONE_BY_ONE:
            with self._told("delete", f"{len(fulls)} objects"):
                if self._delete_together(fulls):
                    return
        for _ in in_flight(self._delete_one, fulls, S3Store.max_at_once):
            pass
        _ONE_BY_ONE.add(here)  # not before: it may refuse these too, for a reason that somebody mends

    def _delete_together(self, fulls: list[str]) -> bool:
        """False: nothing is deleted, and each by itself may be."""
        try:
            answer = self.client.delete_objects(
                Bucket=self.name, Delete={"Objects": [{"Key": full} for full in fulls], "Quiet": True}
            )
        except ClientError as error:
            if code_of(error) in _NOT_TOGETHER or status_of(error) in (405, 501):
                return False
            raise
        for refused in answer.get("Errors", []):
            if refused.get("Code") not in ABSENT:
                raise ClientError({"Error": refused}, "DeleteObjects")
        return True

    def _delete_one(self, full: str) -> None:
        with self._told("delete", full):
            try:
                self.client.delete_object(Bucket=self.name, Key=full)
            except ClientError as error:
                if code_of(error) not in ABSENT:
                    raise

    def abort_uploads(self, prefix: str, before: datetime) -> int:
        num_aborted = 0
        with self._told("list"):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix)
            for upload in chain.from_iterable(page.get("Uploads", []) for page in pages):
                if upload["Initiated"] < before:
                    self.client.abort_multipart_upload(Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"])
                    num_aborted += 1
        return num_aborted

    def _stream(self, full: str, key: str, anew: Callable[[], Callable[[bytes], object]]) -> str:
        """Read it all; -> its ETag. botocore retries requests, not a body that breaks off: then we begin `anew`."""
        for attempt in range(1, NUM_ATTEMPTS + 1):
            take = anew()
            with self._told("read", key):
                answer = self.client.get_object(Bucket=self.name, Key=full)
                try:
                    with closing(answer["Body"]) as body:
                        for chunk in body.iter_chunks(_CHUNK_BYTES):
                            take(chunk)
                    return str(answer["ETag"].strip('"'))
                except BotoCoreError:
                    if attempt == NUM_ATTEMPTS:
                        raise
            time.sleep(0.2 * attempt)
        raise AssertionError("unreachable")

    @contextmanager
    def _told(self, doing: str, key: str | None = None) -> Iterator[None]:
        try:
            with told(lambda: self.place, doing, key):
                yield
        except NoSuchObject:
            self._need_bucket()  # its absence can look the same
            raise

    def _need_bucket(self) -> None:
        if self._is_there:
            return
        with told(lambda: self.place, "read"):
            try:
                self.client.head_bucket(Bucket=self.name)
            except ClientError as error:
                if code_of(error) in {*ABSENT, "NoSuchBucket"}:
                    raise no_bucket(self.place) from error
        self._is_there = True

    def remember(self, full: str, stored: StoredObject) -> None:
        """What was just sent in parts, by the ETag that it has got."""
        found = self.head(full, stored.key)
        if found is not None and found.size_bytes == stored.size_bytes:
            self._remember(full, found.etag, stored.sha256)

    def _writer_of(self, full: str) -> str | None:
        metadata = self.client.head_object(Bucket=self.name, Key=full).get("Metadata", {})
        writer: str | None = metadata.get("bricks-writer")
        return writer

    def _remember(self, full: str, etag: str, sha256: str) -> None:
        CACHE.remember(self._cache_name(full), etag, sha256)

    def _cache_name(self, full: str) -> str:
        return f"s3:{_shown(self.client)}/{self.name}/{full}"


class _Hashed:
    """A file on its way out: read once, from front to back, and hashed in passing."""

    def __init__(self, file: IO[bytes]):
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self._file = file

    def read(self, num_bytes: int = -1) -> bytes:
        data = self._file.read(num_bytes)
        self.digest.update(data)
        self.size_bytes += len(data)
        return data

    def seekable(self) -> bool:
        return False  # else it would be read twice: for the checksum, and to be sent


def source_objects(uri: str, bucket: str, prefix: str) -> Iterator[SourceFile]:
    """See `places.list_source`."""
    place = _Bucket(bucket)
    folder = f"{prefix}/" if prefix else ""
    found = place.head(prefix, prefix) if prefix else None
    objects = iter([found]) if found is not None else place.objects(folder)
    is_empty = True
    for each in objects:
        is_empty = False
        name = each.full.rpartition("/")[2] if found is not None else each.full.removeprefix(folder)
        # Keys that end in a slash are the folders some programs draw.
        if not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
            yield _source_file(place, each, name)
    if is_empty:
        raise SpecError(f"The source {uri} is not there: the bucket has no such object or prefix.")


def _source_file(bucket: _Bucket, found: _Object, name: str) -> SourceFile:
    full, size_bytes, etag, _ = found

    def local() -> AbstractContextManager[Path]:
        return bucket.downloaded(full, name)

    return SourceFile(
        name=name,
        size_bytes=size_bytes,
        uri=f"s3://{bucket.name}/{full}",
        _fingerprint=lambda: f"etag:{etag}-{size_bytes}",
        _sha256=lambda: bucket.sha256(full, name),
        _local=local,
    )


_making = threading.Lock()
"""One is made at a time: threads that begin together would each make one of their own, of 10 MB and more."""


def _renew_lock() -> None:
    """The thread that held it is not in the child."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


@lru_cache(maxsize=4)  # making one takes a quarter of a second
def _client(pid: int, settings_of_now: frozenset[tuple[str, str]]) -> Any:
    botocore_session = botocore.session.get_session()
    with told(lambda: "S3", "open"):
        settings = botocore_session.get_scoped_config()
        retries: dict[str, Any] = {}
        if "AWS_RETRY_MODE" not in os.environ and "retry_mode" not in settings:
            retries["mode"] = "standard"
        if "AWS_MAX_ATTEMPTS" not in os.environ and "max_attempts" not in settings:
            retries["total_max_attempts"] = NUM_ATTEMPTS
        # By default botocore sends checksums in a way (trailers, aws-chunked) that many servers refuse. What is signed
        # is the content's sha256 then, so what arrives altered is refused all the same.
        checksums = {
            name: "when_required"
            for name in ("request_checksum_calculation", "response_checksum_validation")
            if f"AWS_{name.upper()}" not in os.environ and name not in settings
        }
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries=retries,
            max_pool_connections=2 * S3Store.max_at_once,
            **checksums,
        )
        # Every SDK but Python's reads AWS_REGION; it wins over AWS_DEFAULT_REGION, which boto3 reads.
        region = os.environ.get("AWS_REGION") or None
        session = boto3.Session(botocore_session=botocore_session, region_name=region)
        try:
            client = session.client("s3", config=config)
            host = urlsplit(client.meta.endpoint_url).hostname or ""
            if "amazonaws." not in host and "addressing_style" not in str(settings.get("s3", "")):
                # bucket.host rarely resolves where the server is one's own; host/bucket always does.
                client = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
        except ValueError as error:
            raise SpecError(f"Cannot open S3: {error}. Correct AWS_ENDPOINT_URL_S3.") from error
    client.meta.events.register("after-call.s3", check_answer)
    return client


def _shown(client: Any) -> str:
    """The endpoint, without what may stand before an @."""
    address = urlsplit(str(client.meta.endpoint_url))
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}"


def _transfer(part_bytes: int) -> TransferConfig:
    config = TransferConfig(
        multipart_threshold=part_bytes,
        multipart_chunksize=part_bytes,
        max_concurrency=4,
        io_chunksize=_CHUNK_BYTES // 4,
        max_io_queue=64,  # 16 MiB wait for a slow disk
    )
    config.max_in_memory_upload_chunks = 4  # 64 MiB, rather than 160
    return config
