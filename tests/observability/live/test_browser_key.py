"""A browser's password becomes the API key on the page's routes, when the page itself or its user asks."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from sglang.srt.utils.auth import add_api_key_middleware

from leankv_sglang.observability.live.page.browser_key import install_browser_key

KEY = "a key: with a colon"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.get("/leankv")
    @app.get("/leankv/x")
    @app.get("/leankvish")
    def page(request: Request) -> dict[str, Any]:
        return {"authorization": request.headers.get("authorization")}

    install_browser_key(app, "/leankv")
    install_browser_key(app, "/leankv")
    # As SGLang does it, when the server is launched.
    add_api_key_middleware(app, api_key=KEY, admin_api_key=None)
    return TestClient(app, base_url="http://here:3000")


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()}


def test_a_password_is_the_key(client: TestClient) -> None:
    for path in ("/leankv", "/leankv/x"):
        answer = client.get(path, headers=basic(KEY))
        assert answer.json() == {"authorization": f"Bearer {KEY}"}
    assert client.get("/leankv", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_browsers_are_told_to_ask_for_it(client: TestClient) -> None:
    for headers in ({}, basic("wrong"), {"Authorization": "Basic ###"}):
        answer = client.get("/leankv", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")


def test_other_routes_know_no_passwords(client: TestClient) -> None:
    answer = client.get("/leankvish", headers=basic(KEY))
    assert answer.status_code == 401
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 401),
        ({"Sec-Fetch-Site": "same-site"}, 401),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://elsewhere"}, 401),
        ({"Origin": "null"}, 401),
        ({"Origin": "http://here:3000"}, 200),
    ],
)
def test_other_pages_cannot_use_it(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/leankv", headers={**basic(KEY), **headers}).status_code == status
