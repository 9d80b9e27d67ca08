"""The openai client against a real server: what is sent, what is tried again, and what every failure becomes."""

import socket

import pytest

from bricks_core.errors import ServiceUnavailable, SpecError, TryLater
from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption import vision_model
from bricks_core.stages.caption.vision_model import VisionModel

SPEC = CaptionSpec(provider="openai", model="eyes-1", max_retries=2)


def ask(spec=SPEC, **settings):
    with VisionModel(spec, **settings) as model:
        return model.ask("What is it?", [b"one", b"two"])


def test_a_question_carries_the_prompt_the_pictures_in_order_and_the_limit(server, replies):
    answer = ask()
    (question,) = server.questions
    assert question.path == "/v1/chat/completions"
    assert question.key == "Bearer sk-secret-of-the-test"
    assert (question.prompt, question.jpegs) == ("What is it?", [b"one", b"two"])
    assert question.body["model"] == "eyes-1"
    assert question.body["max_completion_tokens"] == 300
    assert answer.text == replies.SENTENCES
    assert (answer.model, answer.prompt_tokens, answer.output_tokens, answer.refused) == ("eyes-1-2026", 900, 40, "")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_trouble_is_tried_again(server, replies, status):
    server.answer = lambda _, number: replies.failed(status, "busy") if number < 2 else replies.said("A man walks on.")
    assert ask().text == "A man walks on."
    assert len(server.questions) == 3


@pytest.mark.parametrize(
    ("status", "error", "exit_code"),
    [(429, TryLater, 75), (500, ServiceUnavailable, 69), (503, ServiceUnavailable, 69)],
)
def test_a_trouble_that_stays_ends_with_its_exit_code(server, replies, status, error, exit_code):
    server.answer = lambda *_: replies.failed(status, "still busy")
    with pytest.raises(error, match="still busy") as told:
        ask()
    assert told.value.exit_code == exit_code
    assert len(server.questions) == 1 + SPEC.max_retries


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_is_told_at_once(server, replies, status):
    server.answer = lambda *_: replies.failed(status, "not for sk-secret-of-the-test")
    with pytest.raises(SpecError) as told:
        ask()
    assert told.value.exit_code == 78
    assert "sk-secret" not in str(told.value)
    assert ("OPENAI_API_KEY" if status < 404 else "caption.model") in str(told.value)
    assert len(server.questions) == 1


def test_without_a_key_nothing_is_asked(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SpecError, match="OPENAI_API_KEY is not set"):
        ask()
    assert server.questions == []


def test_a_server_that_is_not_there_is_away(server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:word@127.0.0.1:{free.getsockname()[1]}/v1")
    with pytest.raises(ServiceUnavailable, match="cannot be reached") as told:
        ask(SPEC.model_copy(update={"max_retries": 0}))
    assert told.value.exit_code == 69
    assert "word@" not in str(told.value)


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(server, monkeypatch):
    monkeypatch.setattr(vision_model, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
        with pytest.raises(ServiceUnavailable, match=r"did not answer within 0\.2 s"):
            ask(SPEC.model_copy(update={"max_retries": 0}))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"text": None, "refusal": "I won't."}, "the model refused: I won't."),
        ({"text": "A man", "finish": "length"}, "the answer was cut off at max_output_tokens, 300"),
        ({"text": None, "finish": "content_filter"}, "content filter"),
    ],
)
def test_what_the_model_does_not_say_is_an_answer_with_a_reason(server, replies, reply, reason):
    server.answer = lambda *_: replies.said(**reply)
    assert reason in ask().refused


def test_a_question_that_the_servers_policy_refuses_is_an_answer_too(server, replies):
    server.answer = lambda *_: replies.failed(
        400, "The prompt triggered our content management policy", "content_filter"
    )
    assert "content management policy" in ask().refused


def test_a_question_that_cannot_be_asked_stops_all_unless_others_were_answered(server, replies):
    server.answer = lambda *_: replies.failed(400, "this model takes no pictures")
    with pytest.raises(SpecError, match="takes no pictures"):
        ask()
    assert "takes no pictures" in ask(proven=True).refused


def test_a_server_that_knows_only_the_older_name_of_the_limit_is_asked_with_it(server, replies):
    def answer(question, number):
        if "max_completion_tokens" in question.body:
            return replies.failed(400, "Unknown parameter: max_completion_tokens")
        return replies.said("A man walks on.")

    server.answer = answer
    with VisionModel(SPEC) as model:
        assert [model.ask("What?", []).text for _ in range(2)] == ["A man walks on."] * 2
    assert ["max_tokens" in question.body for question in server.questions] == [False, True, True]


def test_a_server_that_does_not_say_that_it_sends_json_is_understood(server, replies):
    server.content_type = "text/plain"
    assert ask().text == replies.SENTENCES


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": None, "usage": None}, [], {"choices": [None]}])
def test_a_server_that_leaves_things_out_gives_no_answer_rather_than_an_error_of_ours(server, body):
    server.answer = lambda *_: (200, body)
    answer = ask()
    assert answer.text == ""
    assert answer.refused == ("" if body == {"choices": [None]} else "the server gave no answer")


def test_a_choice_without_a_message_text_is_empty(server):
    server.answer = lambda *_: (200, {"choices": [{"message": {"role": "assistant"}, "index": 0}]})
    answer = ask()
    assert (answer.text, answer.refused, answer.model) == ("", "", "eyes-1")
