"""A vision model behind any OpenAI-compatible server. Where it is and its key come from OPENAI_* in the environment."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import openai

from bricks_core.errors import BricksError, ServiceUnavailable, SpecError, TryLater
from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption.sources import Answer

TIMEOUT_S = 90.0
"""Of one try. A page of words takes a large model seconds; a server that is silent for longer has lost us."""


class VisionModel:
    """Ask it from as many threads as you like; close it, or use it as a context.

    Passing troubles (429, 5xx, a dropped connection) are tried again by the client, `max_retries` times, with growing
    pauses or those the server asks for.
    """

    def __init__(self, spec: CaptionSpec, *, proven: bool = False):
        """`proven`: it has answered before, in an earlier try of this stage.

        Raises:
            SpecError: OPENAI_API_KEY is not set.
        """
        self.num_calls = 0
        self._spec = spec
        self._limit = "max_completion_tokens"
        self._proven = proven
        self._lock = threading.Lock()
        try:
            self._client = openai.OpenAI(max_retries=spec.max_retries, timeout=TIMEOUT_S)
        except openai.OpenAIError:
            raise SpecError(
                "caption.provider is openai, but OPENAI_API_KEY is not set in the environment: set it (any word does "
                "for a server that asks for none), and OPENAI_BASE_URL for a server other than OpenAI's."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def ask(self, prompt: str, jpegs: Sequence[bytes]) -> Answer:
        """Show it pictures and ask. What it refuses to say is an answer too.

        Raises:
            SpecError: the key, the model's name or the address is refused: it would be refused again.
            TryLater: the rate limit, or the account's credit, is used up.
            ServiceUnavailable: the server cannot be reached, or fails.
        """
        with self._lock:
            self.num_calls += 1
        try:
            answer = self._complete(prompt, jpegs)
        except openai.OpenAIError as error:
            return self._told(error)
        self._proven = True
        return answer

    def _complete(self, prompt: str, jpegs: Sequence[bytes]) -> Answer:
        content: list[Any] = [{"type": "text", "text": prompt}]
        for jpeg in jpegs:
            url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
            content.append({"type": "image_url", "image_url": {"url": url}})
        question = {"model": self._spec.model, "messages": [{"role": "user", "content": content}]}
        try:
            reply = self._post(question)
        except openai.BadRequestError as error:
            # Newer models know only the one name for the limit, some servers only the other.
            if self._limit != "max_completion_tokens" or "max_completion_tokens" not in str(error):
                raise
            self._limit = "max_tokens"
            reply = self._post(question)
        return _answer(reply, self._spec)

    def _post(self, question: dict[str, Any]) -> Any:
        # The client's own method for this walks through the types of every field of question and reply: as much CPU
        # again as all the rest of a call.
        body = question | {self._limit: self._spec.max_output_tokens}
        reply = self._client.post("/chat/completions", body=body, cast_to=object)
        if isinstance(reply, str):  # the server does not say that it is JSON
            with suppress(ValueError):
                return json.loads(reply)
        return reply

    def _told(self, error: openai.OpenAIError) -> Answer:
        """A refusal of this one question as an answer; everything else is raised as one of ours."""
        url = self._client.base_url
        server = str(url.copy_with(username=None, password=None))
        words = _words(error).replace(self._client.api_key, "…")
        # One question that is refused must not stop the others; but if none was ever answered, something is set wrong.
        if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError) and (
            self._proven or re.search(r"content.{0,20}(filter|policy)", words, re.IGNORECASE)
        ):
            return Answer(model=self._spec.model, refused=f"the server refused the question: {words}")
        raise _ours(error, words, server, self._spec) from None


def _ours(error: openai.OpenAIError, words: str, server: str, spec: CaptionSpec) -> BricksError:
    """The server's error in our words, with the exit code that tells what to do."""
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return SpecError(
                f"{server} refuses the key in OPENAI_API_KEY ({words}): set one that may use {spec.model}."
            )
        case openai.NotFoundError():
            return SpecError(
                f"{server} knows no model {spec.model} ({words}): mend caption.model, or OPENAI_BASE_URL, "
                "which usually ends in /v1."
            )
        case openai.RateLimitError():
            return TryLater(
                f"{server} still says that we ask too often after {spec.max_retries} retries ({words}): run "
                "again later, or set caption.concurrency lower. What is done is kept."
            )
        case openai.APITimeoutError():
            return ServiceUnavailable(
                f"{server} did not answer within {TIMEOUT_S:g} s, {spec.max_retries + 1} times. What is done is kept: "
                "run again when it does."
            )
        case openai.APIConnectionError():
            return ServiceUnavailable(
                f"{server} cannot be reached ({error.__cause__ or error}): start it, or mend OPENAI_BASE_URL. What is "
                "done is kept."
            )
        case openai.InternalServerError():
            return ServiceUnavailable(
                f"{server} fails ({words}), after {spec.max_retries} retries too. What is done is kept: run "
                "again when it works."
            )
        case openai.APIStatusError():
            return SpecError(f"{server} refuses the question ({words}): is {spec.model} a model that can see?")
    return ServiceUnavailable(f"{server} gave an answer that cannot be read ({words}).")


def _answer(reply: Any, spec: CaptionSpec) -> Answer:
    """A reply of the chat completions protocol as an Answer; servers differ in what they leave out."""
    usage = _part(reply, "usage")
    answer = Answer(
        model=_text(reply, "model") or spec.model,
        prompt_tokens=_number(usage, "prompt_tokens"),
        output_tokens=_number(usage, "completion_tokens"),
    )
    choices = _part(reply, "choices")
    if not isinstance(choices, list) or not choices:
        return answer.model_copy(update={"refused": "the server gave no answer"})
    message, finish = _part(choices[0], "message"), _part(choices[0], "finish_reason")
    refused = ""
    if refusal := _text(message, "refusal"):
        refused = f"the model refused: {refusal}"
    elif finish == "content_filter":
        refused = "the server's content filter held the answer back"
    elif finish == "length":
        refused = f"the answer was cut off at max_output_tokens, {spec.max_output_tokens}"
    return answer.model_copy(update={"text": _text(message, "content"), "refused": refused})


def _part(reply: Any, name: str) -> Any:
    """A field of what a server sent, whatever that is."""
    return reply.get(name) if isinstance(reply, dict) else None


def _text(reply: Any, name: str) -> str:
    found = _part(reply, name)
    return found if isinstance(found, str) else ""


def _number(reply: Any, name: str) -> int:
    found = _part(reply, name)
    return found if isinstance(found, int) else 0


def _words(error: openai.OpenAIError) -> str:
    """The server's own words, short, on one line."""
    text = " ".join(str(getattr(error, "message", "") or error).split())
    return text if len(text) <= 200 else text[:199] + "…"
