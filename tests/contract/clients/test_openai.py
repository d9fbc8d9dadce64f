"""The official Python client of OpenAI."""

import io
import wave
from collections.abc import Iterator

import openai
import pytest

from metering.model import Usage
from tests.contract.clients.claims import serves
from tests.contract.clients.values import EAR, EMBEDDER, cost, only_event
from tests.gateway_fixture import ENDPOINT, MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine

CLIENT = "openai (Python)"
TALK = [{"role": "user", "content": "one two three"}]


@pytest.fixture
def ai(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=0) as client:
        yield client


def a_wav_file(seconds: float) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\0" * int(8000 * seconds))
    return data.getvalue()


@serves(CLIENT, "/v1/chat/completions")
def test_chat(gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=2, reasoning_tokens=1)
    raw = ai.chat.completions.with_raw_response.create(model=MODEL, messages=TALK)
    assert raw.parse().choices[0].message.content == "tok0 tok1 tok2"
    usage = Usage(3, 2, 3, 1)
    event = only_event(gateway, "chat.completions", usage)
    assert raw.headers["x-farebox-cost-usd"] == cost(usage) == "0.0000021"
    counts = ("input", "cached-input", "output")
    assert [raw.headers[f"x-farebox-{name}-tokens"] for name in counts] == ["3", "2", "3"]
    assert raw.headers["x-request-id"] == event.request_id


@serves(CLIENT, "/v1/chat/completions, streamed")
def test_streamed_chat(gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=2)
    options = {"include_usage": True}
    stream = ai.chat.completions.create(model=MODEL, messages=TALK, stream=True, stream_options=options)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "tok0 tok1 tok2 "
    final = chunks[-1].usage
    assert final is not None
    usage = Usage(3, 2, 3)
    only_event(gateway, "chat.completions", usage, stream=True)
    assert final.model_dump()["cost_usd"] == cost(usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])


@serves(CLIENT, "/v1/completions")
def test_completions(gateway: RunningGateway, ai: openai.OpenAI) -> None:
    answer = ai.completions.create(model=ENDPOINT, prompt="one two", max_tokens=2)
    assert answer.choices[0].text == "tok0 tok1"
    only_event(gateway, "completions", Usage(2, 0, 2))


@serves(CLIENT, "/v1/completions, streamed")
def test_streamed_completions(gateway: RunningGateway, ai: openai.OpenAI) -> None:
    stream = ai.completions.create(model=MODEL, prompt="one two", max_tokens=2, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "tok0 tok1 "
    only_event(gateway, "completions", Usage(2, 0, 2), stream=True)


@serves(CLIENT, "/v1/embeddings", "/v1/models")
def test_embeddings_and_models(gateway: RunningGateway, ai: openai.OpenAI) -> None:
    raw = ai.embeddings.with_raw_response.create(
        model=EMBEDDER, input=["one two", "three"], encoding_format="float"
    )
    assert len(raw.parse().data) == 2
    only_event(gateway, "embeddings", Usage(3))
    assert raw.headers["x-farebox-cost-usd"] == cost(Usage(3))
    assert {MODEL, ENDPOINT, EMBEDDER, EAR} <= {model.id for model in ai.models.list()}
    assert ai.models.retrieve(MODEL).id == MODEL


@serves(CLIENT, "/v1/responses")
def test_responses(gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=1, reasoning_tokens=2)
    raw = ai.responses.with_raw_response.create(model=MODEL, input="one two three")
    answer = raw.parse()
    assert answer.output_text == "tok0 tok1 tok2"
    assert answer.usage is not None and answer.usage.input_tokens_details.cached_tokens == 1
    usage = Usage(3, 1, 3, 2)
    event = only_event(gateway, "responses", usage)
    assert (event.engine_request_id, event.finish_reason) == (answer.id, "completed")
    assert raw.headers["x-farebox-cost-usd"] == cost(usage)
    seen = engine.seen[0].body
    assert (seen["model"], seen["store"]) == ("mock", False)
    assert len(seen["cache_salt"]) == 32


@serves(CLIENT, "/v1/responses, streamed")
def test_streamed_responses(gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=1)
    events = list(ai.responses.create(model=MODEL, input="one two three", stream=True))
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "tok0 tok1 tok2"
    last = events[-1]
    assert last.type == "response.completed" and last.response.usage is not None
    usage = Usage(3, 1, 3)
    only_event(gateway, "responses", usage, stream=True)
    assert last.response.usage.model_dump()["cost_usd"] == cost(usage)
    with ai.responses.stream(model=MODEL, input="one two") as helper:
        assert helper.get_final_response().output_text == "tok0 tok1 tok2"


@pytest.mark.parametrize(("extra", "param"), [
    ({"background": True}, "background"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"background": "yes"}, "background"),
    ({"stream": 3}, "stream"),
    ({"max_output_tokens": -1}, "max_output_tokens"),
    ({"model": ""}, "model"),
])  # fmt: skip
def test_what_responses_refuses(
    gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI, extra: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.responses.create(model=MODEL, input="hi", extra_body=extra)
    assert caught.value.param == param
    assert not engine.seen
    assert not gateway.journal.events


@serves(CLIENT, "/v1/audio/transcriptions")
def test_transcription(gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI) -> None:
    engine.default = Behaviour(audio_seconds=2.1)
    audio = ("speech.wav", a_wav_file(2.1))
    raw = ai.audio.transcriptions.with_raw_response.create(model=EAR, file=audio, language="en")
    assert raw.parse().text == "tok0 tok1"
    event = only_event(gateway, "audio.transcriptions", Usage(audio_ms=3000))
    assert raw.headers["x-farebox-audio-seconds"] == "3"
    assert raw.headers["x-farebox-cost-usd"] == cost(event.usage) == "0.0003"
    seen = engine.seen[0].body
    assert (seen["model"], seen["response_format"], seen["language"]) == ("mock", "json", "en")
    assert seen["file"] == len(audio[1])
    verbose = ai.audio.transcriptions.create(model=EAR, file=audio, response_format="verbose_json")
    assert verbose.duration == 2.1
    assert gateway.journal.wait_events(2)[1].usage == Usage(audio_ms=2100)
    text = ai.audio.transcriptions.create(model=EAR, file=audio, response_format="text")
    assert text == "tok0 tok1\n"  # type: ignore[comparison-overlap]  # the client's types know json only


@serves(CLIENT, "/v1/audio/transcriptions, streamed")
def test_streamed_transcription(gateway: RunningGateway, ai: openai.OpenAI) -> None:
    audio = ("speech.wav", a_wav_file(1.5))
    events = list(ai.audio.transcriptions.create(model=EAR, file=audio, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == "tok0 tok1"  # type: ignore[union-attr]  # told by its type
    only_event(gateway, "audio.transcriptions", Usage(audio_ms=2000))


def test_audio_of_unknown_length_is_not_free(
    gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI
) -> None:
    engine.default = Behaviour(usage="missing")
    for data in (a_wav_file(1.25), b"\1" * 40_000):
        ai.audio.transcriptions.create(model=EAR, file=("speech.bin", data))
    first, second = gateway.journal.wait_events(2)
    assert (first.usage_source, first.usage) == ("estimated", Usage(audio_ms=1250))
    assert (second.usage_source, second.usage) == ("estimated", Usage(audio_ms=2500))


def test_what_a_model_cannot_do(gateway: RunningGateway, engine: MockEngine, ai: openai.OpenAI) -> None:
    for call in (
        lambda: ai.responses.create(model=EMBEDDER, input="hi"),
        lambda: ai.embeddings.create(model=MODEL, input="hi"),
        lambda: ai.audio.transcriptions.create(model=MODEL, file=("a.wav", b"abc")),
        lambda: ai.chat.completions.create(model=EAR, messages=TALK),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
    assert not engine.seen
    engine.default = Behaviour(status=404, error={"detail": "Not Found"})
    with pytest.raises(openai.NotFoundError, match="cannot do this") as caught:
        ai.responses.create(model=MODEL, input="hi")
    assert caught.value.code == "model_not_found"
    assert gateway.journal.events[0].usage == Usage()
