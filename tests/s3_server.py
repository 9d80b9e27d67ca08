"""moto's S3 server, for the tests that need S3 over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import boto3

BUCKET = "bricks-test"
KEY_ID, SECRET = "bricks", "bricks-on-loopback"


class S3Server:
    """moto's server on a port of its own, which it keeps when it is started again; its data lives as long as it.

    `host` is the address it listens at: it asks nobody for a password, so it should be one that only tests reach.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        with socket.create_server((host, 0)) as free:
            self.port = free.getsockname()[1]
        self.endpoint = f"http://{host}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", self.host, "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert self._process.poll() is None, "moto's server did not start"
                time.sleep(0.05)
        self.client.create_bucket(Bucket=BUCKET)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Answer nothing any more, and forget nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to know to use it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @property
    def client(self) -> Any:
        """A client that needs no environment."""
        keys = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.endpoint, **keys)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix."""
        client = self.client
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in self.keys(prefix)}

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]
