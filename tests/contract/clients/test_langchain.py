"""LangChain's OpenAI integration."""

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from metering.model import Usage
from tests.contract.clients.claims import serves
from tests.contract.clients.values import EMBEDDER, only_event
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway

CLIENT = "langchain-openai"
KEY = SecretStr(PROJECT_KEY)


def _chat(gateway: RunningGateway, **named: object) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, **named)  # type: ignore[arg-type]


@serves(CLIENT, "/v1/chat/completions")
def test_chat(gateway: RunningGateway) -> None:
    answer = _chat(gateway).invoke("one two three")
    assert answer.content == "tok0 tok1 tok2 tok3"
    assert answer.usage_metadata is not None
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (3, 4)
    only_event(gateway, "chat.completions", Usage(3, 0, 4))


@serves(CLIENT, "/v1/chat/completions, streamed")
def test_streamed_chat(gateway: RunningGateway) -> None:
    chunks = list(_chat(gateway, stream_usage=True).stream("one two three"))
    assert "".join(str(chunk.content) for chunk in chunks) == "tok0 tok1 tok2 tok3 "
    assert [c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata] == [4]
    only_event(gateway, "chat.completions", Usage(3, 0, 4), stream=True)


@serves(CLIENT, "/v1/responses")
def test_responses(gateway: RunningGateway) -> None:
    answer = _chat(gateway, use_responses_api=True).invoke("one two three")
    assert answer.text == "tok0 tok1 tok2 tok3"
    [event] = gateway.journal.wait_events(1)
    assert (event.operation, event.usage.output, event.usage_source) == ("responses", 4, "engine")


@serves(CLIENT, "/v1/responses, streamed")
def test_streamed_responses(gateway: RunningGateway) -> None:
    chunks = list(_chat(gateway, use_responses_api=True).stream("one two three"))
    assert "".join(chunk.text for chunk in chunks) == "tok0 tok1 tok2 tok3"
    [event] = gateway.journal.wait_events(1)
    assert (event.operation, event.stream, event.usage.output) == ("responses", True, 4)


@serves(CLIENT, "/v1/completions")
def test_completions(gateway: RunningGateway) -> None:
    model = OpenAI(model=MODEL, base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)
    assert model.invoke("one two three") == "tok0 tok1 tok2 tok3"
    only_event(gateway, "completions", Usage(3, 0, 4))


@serves(CLIENT, "/v1/embeddings")
def test_embeddings(gateway: RunningGateway) -> None:
    model = OpenAIEmbeddings(
        model=EMBEDDER, base_url=gateway.url + "/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    assert len(model.embed_documents(["one two", "three"])) == 2
    only_event(gateway, "embeddings", Usage(3))
