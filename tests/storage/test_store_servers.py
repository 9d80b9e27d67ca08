"""Servers that speak S3 almost, and what stands before them and does not speak it at all."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bricks_core.errors import BricksError, StoreDenied, StoreUnavailable
from bricks_core.storage.places import list_source, open_store
from bricks_core.storage.store import Store
from tests.storage.between import Between, Fault, LoseTheAnswer, Refuse, Say, standing_between

MIB = 1 << 20


def keys(store: Store) -> list[str]:
    return [entry.key for entry in store.list()]


# ---------------------------------------------------------------- many objects deleted by one request

NO_MD5 = [(400, "MissingContentMD5"), (400, "InvalidRequest")]
NOT_KNOWN = [(501, "NotImplemented"), (501, ""), (405, "MethodNotAllowed"), (405, ""), (400, "MalformedPOSTRequest")]


@pytest.mark.parametrize(("status", "code"), NO_MD5 + NOT_KNOWN)
def test_where_many_cannot_be_deleted_by_one_request_each_is_by_its_own(
    between: Between, status: int, code: str
) -> None:
    store = between.open_store()
    for index in range(40):
        store.put(f"a/{index:02}", b"")
    asked: list[str] = []

    def refusing() -> Iterator[Fault]:
        for each in between.requests:
            asked.append(each.method)
            together = each.method == "POST" and "delete" in each.path
            yield Refuse(status, code) if together and "content-md5" not in each.headers else None

    between.faults = refusing()
    assert store.delete(f"a/{index:02}" for index in range(41)) == 41, "one of them is not there"
    assert (asked.count("POST"), asked.count("DELETE")) == (1, 41)
    assert keys(store) == []
    store.put("b", b"")
    assert open_store(store.uri).delete(["b"]) == 1
    assert (asked.count("POST"), asked.count("DELETE")) == (1, 42), "the bucket is known by now"
    assert keys(store) == []


def test_one_object_that_may_not_be_deleted_is_named(between: Between) -> None:
    store = between.open_store()
    for key in ("a", "locked", "z"):
        store.put(key, b"")

    def refusing() -> Iterator[Fault]:
        for each in between.requests:
            if each.method == "POST":
                yield Refuse(501, "NotImplemented")
            else:
                yield Refuse(403, "AccessDenied") if each.path.endswith("/locked") else None

    between.faults = refusing()
    with pytest.raises(StoreDenied, match=r"Cannot delete .*locked in bucket .*may not do that"):
        store.delete(["a", "locked", "z"])
    assert "locked" in keys(store)


def test_a_delete_that_is_denied_is_not_tried_one_by_one(between: Between) -> None:
    store = between.open_store()
    between.faults = itertools.repeat(Refuse(403, "AccessDenied"))
    before = between.num_requests
    with pytest.raises(StoreDenied, match="may not do that"):
        store.delete(["a", "b"])
    assert between.num_requests == before + 1


# ---------------------------------------------------------------- checksums, regions


@pytest.fixture
def encrypted(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Between]:
    """Speaks HTTPS, over which botocore sends what it does not over HTTP; its certificate is trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
    with standing_between(s3, monkeypatch, tls) as server:
        yield server


def without_trailers(between: Between) -> Iterator[Fault]:
    """As servers do that are older than S3's checksums after a body."""
    for each in between.requests:
        is_chunked = "aws-chunked" in each.headers.get("content-encoding", "") or "x-amz-trailer" in each.headers
        yield Refuse(501, "NotImplemented") if is_chunked else None


def test_a_server_that_knows_no_trailers_is_good_enough(encrypted: Between, tmp_path: Path) -> None:
    encrypted.faults = without_trailers(encrypted)
    store = encrypted.open_store()
    assert store.put("a", b"here")
    with (tmp_path / "film").open("wb") as file:
        file.truncate(17 * MIB)
    encrypted.faults = without_trailers(encrypted)
    stored = store.put_file("film", tmp_path / "film")
    assert store.sha256("film") == stored.sha256
    assert store.get("a") == b"here"
    assert store.delete(["a", "film"]) == 2
    assert keys(store) == []


def test_whoever_asks_for_checksums_gets_them(encrypted: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    encrypted.faults = without_trailers(encrypted)
    with pytest.raises(StoreDenied, match="does not know how"):
        encrypted.open_store()


@pytest.mark.parametrize("default", [None, "us-west-2"])
def test_requests_are_signed_for_the_region_that_aws_region_names(
    between: Between, monkeypatch: pytest.MonkeyPatch, default: str | None
) -> None:
    """boto3 itself reads AWS_DEFAULT_REGION alone."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    if default is not None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", default)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    store, signed = between.open_store(), []

    def looking() -> Iterator[Fault]:
        for each in between.requests:
            signed.append(each.headers["authorization"])
            yield None

    between.faults = looking()
    store.head("a")
    assert signed
    assert all("/eu-north-1/s3/aws4_request" in each for each in signed)


# ---------------------------------------------------------------- answers that are none


def listing(entry: str) -> bytes:
    xml = "<?xml version='1.0'?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>"
    return f"{xml}<Contents>{entry}</Contents></ListBucketResult>".encode()


FACTS = {
    "Key": "<Key>a</Key>",
    "Size": "<Size>1</Size>",
    "ETag": "<ETag>x</ETag>",
    "LastModified": "<LastModified>2026-01-01T00:00:00Z</LastModified>",
}
NONSENSE = {
    "a page": b"<!DOCTYPE html><html><head><title>Log in<body><p>Welcome & log in<br></html>",
    "a page that is XML": b"<html><body><h1>It works!</h1></body></html>",
    "cut off": listing("".join(FACTS.values()))[:-20],
    "nothing": b"",
    "JSON": b'{"error": "no route"}',
    "no text": bytes(range(256)),
    "another answer": b"<InitiateMultipartUploadResult/>",
    **{f"no {name}": listing("".join(each for other, each in FACTS.items() if other != name)) for name in FACTS},
    "a size that is none": listing("".join({**FACTS, "Size": "<Size>many</Size>"}.values())),
    "a day that is none": listing("".join({**FACTS, "LastModified": "<LastModified>soon</LastModified>"}.values())),
}


def uses(store: Store, folder: Path) -> dict[str, Callable[[], object]]:
    (folder / "small").write_bytes(b"x")
    with (folder / "large").open("wb") as large:
        large.truncate(17 * MIB)
    return {
        "get": lambda: store.get("a"),
        "get_many": lambda: list(store.get_many(["a", "b"])),
        "head": lambda: store.head("a"),
        "local": lambda: store.local("a").__enter__(),
        "sha256": lambda: store.sha256("a"),
        "put": lambda: store.put("a", b""),
        "put_if_absent": lambda: store.put("a", b"", if_absent=True),
        "put_file": lambda: store.put_file("a", folder / "small"),
        "put_large_file": lambda: store.put_file("a", folder / "large"),
        "list": lambda: keys(store),
        "delete": lambda: store.delete(["a"]),
        "sweep": lambda: store.sweep(),
        "source": lambda: list(list_source(store.uri)),
    }


@pytest.mark.parametrize("kind", NONSENSE)
def test_an_answer_that_is_none_is_told_in_one_sentence(between: Between, tmp_path: Path, kind: str) -> None:
    store = between.open_store()
    for name, use in uses(store, tmp_path).items():
        between.faults = itertools.repeat(Say(NONSENSE[kind]))
        # What is no XML botocore itself takes for a failure of the server, in some answers, and asks again.
        with pytest.raises(
            StoreUnavailable, match=r"what it answers is not S3's, or is cut off|the server fails"
        ) as caught:
            pytest.fail(f"{name} gave {use()!r} of {kind}")
        assert caught.value.exit_code == 69
        assert "\n" not in str(caught.value)
        assert between.endpoint in str(caught.value)
    between.faults = iter(())
    assert keys(store) == []


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_page_of_a_proxy_that_fails_is_a_service_that_is_away(between: Between, tmp_path: Path, kind: str) -> None:
    store = between.open_store()
    for name, use in uses(store, tmp_path).items():
        between.faults = itertools.repeat(Say(NONSENSE[kind], 502))
        with pytest.raises(StoreUnavailable) as caught:
            pytest.fail(f"{name} gave {use()!r} of {kind}")
        assert "\n" not in str(caught.value)


def test_an_upload_that_is_listed_without_its_facts_is_told(between: Between) -> None:
    store = between.open_store()
    between.faults = iter(
        [Say(b"<ListMultipartUploadsResult><Upload><Key>a</Key></Upload></ListMultipartUploadsResult>")]
    )
    with pytest.raises(StoreUnavailable, match="what it answers is not S3's"):
        store.sweep()


def test_a_connection_that_breaks_while_the_bucket_is_looked_for_is_told(between: Between) -> None:
    store = between.open_store()
    between.faults = iter([Refuse(404, "NoSuchKey"), LoseTheAnswer()])
    with pytest.raises(StoreUnavailable, match="the connection broke"):
        store.get("a")


TAGS = st.sampled_from(
    ["Error", "Code", "Message", "ListBucketResult", "Contents", "Key", "Size", "ETag", "LastModified", "IsTruncated"]
)
ROOTS = st.sampled_from(["Error", "ListBucketResult", "html"])
TEXTS = st.sampled_from(["", "1", "-1", "yesterday", "NoSuchKey", "true", "&#128;", "\n"])
TREES = st.recursive(
    TEXTS,
    lambda inner: st.lists(st.tuples(TAGS, inner), max_size=4).map(
        lambda parts: "".join(f"<{tag}>{inside}</{tag}>" for tag, inside in parts)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    root=st.sampled_from(["Error", "ListBucketResult", "html"]), inside=TREES, status=st.sampled_from([200, 400, 503])
)
def test_whatever_it_answers_is_a_listing_or_a_sentence(
    answering: tuple[Between, Store], root: str, inside: str, status: int
) -> None:
    between, store = answering
    between.faults = itertools.repeat(Say(f"<{root}>{inside}</{root}>".encode(), status))
    for use in (lambda: list(itertools.islice(store.list(), 10)), lambda: store.delete(["a"]), lambda: store.get("a")):
        with suppress(BricksError):  # any other error fails the test
            use()


@pytest.fixture
def answering(between: Between) -> tuple[Between, Store]:
    return between, between.open_store()
