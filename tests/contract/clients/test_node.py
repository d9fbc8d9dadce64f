"""The official Node client of OpenAI."""

import json
import shutil
import subprocess
from pathlib import Path

from tests.contract.clients.claims import serves
from tests.contract.clients.values import EAR, EMBEDDER
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway

PROJECT = Path(__file__).parents[2] / "api" / "node"


@serves(
    "openai (Node)",
    *("/v1/chat/completions", "/v1/chat/completions, streamed"),
    *("/v1/completions", "/v1/completions, streamed"),
    *("/v1/embeddings", "/v1/responses", "/v1/responses, streamed", "/v1/models"),
    *("/v1/audio/transcriptions", "/v1/audio/transcriptions, streamed"),
)
def test_every_route(gateway: RunningGateway, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    shutil.copytree(PROJECT, folder)
    install = ["npm", "ci", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=110)
    command = ["node", "routes.mjs", gateway.url + "/v1", PROJECT_KEY, MODEL, EMBEDDER, EAR]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    words = "tok0 tok1 tok2 tok3"
    for name in ("chat", "completion", "response", "responseStream"):
        assert seen[name] == words, name
    assert seen["chatStream"] == seen["completionStream"] == words + " "
    assert seen["transcription"] == seen["transcriptionStream"] == "tok0 tok1"
    assert seen["embeddings"] == 2
    assert {MODEL, EMBEDDER, EAR} <= set(seen["models"])
    assert seen["refused"] == {"status": 400, "param": "background", "name": "BadRequestError"}
    operations = [event.operation for event in gateway.journal.wait_events(9)]
    assert operations == [
        *("chat.completions", "chat.completions", "completions", "completions", "embeddings"),
        *("responses", "responses", "audio.transcriptions", "audio.transcriptions"),
    ]
    assert all(event.usage_source == "engine" for event in gateway.journal.events)
