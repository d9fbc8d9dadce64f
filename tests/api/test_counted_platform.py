"""An attached server that gives no usage, on the whole platform: counted with the tokenizer that the catalog names."""

from pathlib import Path
from typing import Any

import httpx

from tests.mock_engine import Behaviour, MockEngine
from tests.platform import external_model, running
from tests.small_tokenizer import make_tokenizer, rendered, tokens

MODEL = "acme/mock-chat"
SECRET = "hippopotamus"


def test_the_receipt_says_counted_and_nothing_holds_the_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "model")
    home = tmp_path / "home"
    with MockEngine() as engine, running(home, FAREBOX_LOG_LEVEL="DEBUG") as platform:
        engine.default = Behaviour(tokens=4, usage="missing", continuous=False)
        client = platform.client()
        client.organizations.create("acme")
        client.projects.create("web", organization="acme")
        model = external_model(engine.url)
        client.models.add(model.replace("external,", f'external, tokenizer: "{tmp_path / "model"}",'))
        client.serverless_endpoints.create("my-chat", model=MODEL)
        auth = {"authorization": f"Bearer {client.keys.create(project='web', name='ci')['key']}"}
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}
        for stream in (False, True, True):  # in the slow lane while nothing is known, then in the fast one
            answer = httpx.post(
                platform.url + "/v1/chat/completions",
                json=body | {"stream": stream},
                headers=auth,
                timeout=20,
            )
            assert answer.status_code == 200
            receipt = client.receipts.get(answer.headers["x-request-id"])
            said = "tok0 tok1 tok2 tok3" + (" " if stream else "")
            assert receipt["usage_source"] == "counted"
            assert receipt["usage"]["input"] == tokens(tokenizer, rendered(("user", SECRET)))
            assert receipt["usage"]["output"] == tokens(tokenizer, said)
    for path in home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data and b"tok0 tok1" not in data, path
