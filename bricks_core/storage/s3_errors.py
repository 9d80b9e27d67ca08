"""What S3's and botocore's errors mean, each in one sentence; no secret is ever part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import botocore.exceptions as boto
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError  # type: ignore[import-untyped]

from bricks_core.errors import BricksError, NoSuchObject, SpecError, StoreDenied, StoreUnavailable, TryLater

ABSENT = {"404", "NoSuchKey", "NotFound"}
_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "ExpiredTokenException", "401"}
_KEYS |= {"TokenRefreshRequired", "AuthFailure", "UnrecognizedClientException", "NotSignedUp"}
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "AccountProblem", "MethodNotAllowed", "InvalidObjectState"}
_ELSEWHERE = {
    "301",
    "307",
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "TooManyRequests"}
_BUSY |= {"429", "BandwidthLimitExceeded", "OperationAborted", "ConditionalRequestConflict", "RequestTimeout"}
_NO_KEYS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_FULL = {"QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "507", "XMinioStorageFull", "StorageFull"}


@contextmanager
def told(place: Callable[[], str], doing: str, key: str | None = None) -> Iterator[None]:
    """Turn a failure of boto3 into one of ours. `doing`: read, write, list or delete.

    `place`: bucket and endpoint, only asked for when something has failed.
    """
    try:
        yield
    except ClientError as error:
        raise _refused(error, place(), doing, key) from error
    except (BotoCoreError, Boto3Error, RetriesExceededError, S3DownloadFailedError) as error:
        raise _failed(error, place(), f"{doing} {key}" if key else doing) from error
    except Exception as error:
        if not _is_unreadable(error):
            raise
        raise StoreUnavailable(
            f"Cannot {doing} {key or 'what is'} in {place()}: what it answers is not S3's, or is cut off "
            f"({type(error).__name__}). Check AWS_ENDPOINT_URL_S3, and what proxy stands between; start again."
        ) from error


class NotS3(Exception):
    """An answer that says all is well, and does not say what was asked for."""


_FACTS = {
    "GetObject": {"ETag"},
    "HeadObject": {"ETag", "ContentLength", "LastModified"},
    "PutObject": {"ETag"},
    "UploadPart": {"ETag"},
    "CreateMultipartUpload": {"UploadId"},
    "CompleteMultipartUpload": {"ETag"},
}
_ROOTS = {
    "ListObjectsV2": b"ListBucketResult",
    "DeleteObjects": b"DeleteResult",
    "ListMultipartUploads": b"ListMultipartUploadsResult",
}
"""Of answers that may hold no fact at all."""
_ENTRIES = {
    "ListObjectsV2": ("Contents", {"Key", "Size", "ETag", "LastModified"}),
    "ListMultipartUploads": ("Uploads", {"Key", "UploadId", "Initiated"}),
}


def check_answer(http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
    """A handler of botocore's `after-call`: NotS3 unless an answer with a good status is one to this request.

    botocore reads a proxy's page of HTML, where it happens to be XML, as an answer that says nothing: an empty listing.
    """
    if http_response.status_code >= 300:
        return
    root = _ROOTS.get(model.name)
    if root is not None and root not in http_response.content[:2000]:
        raise NotS3
    if not _FACTS.get(model.name, set()) <= parsed.keys():
        raise NotS3
    entries, facts = _ENTRIES.get(model.name, ("", set()))
    if not all(facts <= each.keys() for each in parsed.get(entries, [])):
        raise NotS3


def _is_unreadable(error: Exception) -> bool:
    """Whether botocore could not make sense of an answer: of what is a number or a date its parsers check nothing."""
    if isinstance(error, NotS3 | ResponseParserError):
        return True
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    ours_or_botocores = [name.partition(".")[0] for name in modules if name.startswith(("bricks_core.", "botocore."))]
    is_of_parsing = isinstance(error, ValueError | TypeError | AttributeError | LookupError)
    return is_of_parsing and ours_or_botocores[-1:] == ["botocore"]


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def no_bucket(place: str) -> StoreDenied:
    return StoreDenied(f"There is no {place}. Make the bucket, or correct the name or AWS_ENDPOINT_URL_S3.")


def _refused(error: ClientError, place: str, doing: str, key: str | None) -> BricksError:
    code, status = code_of(error), status_of(error)
    what = f"Cannot {doing} {key} in {place}" if key else f"Cannot {doing} {place}"
    if code == "NoSuchBucket":
        return no_bucket(place)
    if code in ABSENT and key is not None:
        return NoSuchObject(key)
    if code == "RequestTimeTooSkewed":
        return StoreUnavailable(f"{what}: this machine's clock and the server's differ too much. Set the clock (NTP).")
    if code in _FULL:
        return TryLater(f"{what}: it is full, or your quota is used up ({code}). Make room and start again.")
    if code in _KEYS:
        return StoreDenied(
            f"{what}: the keys are wrong or no longer valid ({code}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(and AWS_SESSION_TOKEN), or AWS_PROFILE."
        )
    if code in _DENIED:
        also = ", s3:ListBucket included (without it, what is missing looks forbidden)" if doing == "read" else ""
        return StoreDenied(f"{what}: these keys may not do that ({code}). Let the bucket's policy allow it{also}.")
    if code in ("PreconditionFailed", "412"):
        return TryLater(f"{what}: it was replaced at that moment. Start again.")
    if code in _ELSEWHERE:
        return StoreDenied(f"{what}: the bucket is in another region or at another endpoint ({code}). Set AWS_REGION.")
    if code in _BUSY or status == 429:
        return TryLater(f"{what}: it asks for a slower pace ({code}). Start again later, or with fewer workers.")
    if code == "NotImplemented" or status == 501:
        return StoreDenied(f"{what}: this server does not know how ({code}). Use a store that speaks all of S3.")
    if status >= 500 or (code.isdecimal() and int(code) >= 500):
        return StoreUnavailable(f"{what}: the server fails ({code}, after retries). Start again when it is well.")
    message = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    return StoreDenied(f"{what}: refused ({code}: {message[:300]}).")


def _failed(error: Exception, place: str, doing: str) -> BricksError:
    what = f"Cannot {doing} in {place}"
    if isinstance(error, _NO_KEYS):
        return StoreDenied(
            f"{what}: no keys were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    if isinstance(error, boto.ProfileNotFound | boto.ConfigParseError | boto.ConfigNotFound | boto.NoRegionError):
        return StoreDenied(f"{what}: {str(error).rstrip('.')}. Correct the AWS_* settings or ~/.aws/config.")
    if isinstance(error, boto.ParamValidationError):
        return SpecError(f"{what}: {' '.join(str(error).split())}")
    if isinstance(error, boto.SSLError):
        return StoreUnavailable(f"{what}: its certificate is not trusted here. Set AWS_CA_BUNDLE.")
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        return StoreUnavailable(f"{what}: nothing answers. Check the network and AWS_ENDPOINT_URL_S3; start again.")
    return StoreUnavailable(f"{what}: the connection broke ({type(error).__name__}, after retries). Start again.")
