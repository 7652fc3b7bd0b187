"""A name that is no folder: said at once whether there is such a model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from leankv_sglang.models.check import check_model_folder
from leankv_sglang.models.errors import ModelError

STATUS = {"there": 200, "gated": 401, "private": 403, "absent": 404}


class Hub(BaseHTTPRequestHandler):
    """Has the model ``org/there``."""

    def do_HEAD(self) -> None:
        """A status for each name."""
        _, org, model, *rest = self.path.split("/")
        assert (org, rest) == ("org", ["resolve", "main", "config.json"])
        self.send_response(STATUS[model])
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _endpoint(monkeypatch, server.server_port)
    yield
    server.shutdown()


def _endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda name, file: f"{url}/{name}/resolve/main/{file}")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/gated", "the hub has no such model for you; set HF_TOKEN"),
        ("org/private", "set HF_TOKEN"),
        ("org/absent", "the hub has no model of that name"),
        ("org/no one", "neither a folder nor a name that a hub could have"),
    ],
)
def test_what_the_hub_does_not_give_is_a_sentence(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=f"^--model-path {name} .*{said}"):
        check_model_folder(name)


@pytest.mark.usefixtures("hub")
def test_what_the_hub_has_passes() -> None:
    check_model_folder("org/there")
    check_model_folder("s3://bucket/model")


def test_no_hub_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        _endpoint(monkeypatch, unused.getsockname()[1])
        with pytest.raises(ModelError, match=r"cannot be reached; give a folder"):
            check_model_folder("org/there")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE keeps closed"):
        check_model_folder("org/there")


def test_what_the_cache_has_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "config.json")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    check_model_folder("org/there")
