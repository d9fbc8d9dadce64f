"""A page for an API's own description (OpenAPI), made readable with nothing loaded from elsewhere.

FastAPI's own page takes its scripts from the internet and stays blank in a closed network.
"""

import base64
import hashlib
import html
import re
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_PAGE = Path(__file__).with_name("api_page.html")


def install_api_page(app: FastAPI, path: str) -> None:
    """Serve the page of `app` at `path`; its one script and its one style sheet are all it may run or load."""
    page = _PAGE.read_text(encoding="utf-8")
    page = page.replace("__TITLE__", html.escape(app.title)).replace("__OPENAPI_URL__", str(app.openapi_url))
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src {_hash(page, 'script')}; "
        f"style-src {_hash(page, 'style')}; base-uri 'none'; frame-ancestors 'none'"
    )

    async def docs(_: Request) -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    app.add_route(path, docs, methods=["GET"], include_in_schema=False)


def _hash(page: str, element: str) -> str:
    found = re.search(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found.group(1).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
