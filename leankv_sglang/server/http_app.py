"""SGLang's HTTP app with ours in front of it, under a name that tokenizer workers can import."""

from sglang.srt.entrypoints.http_server import app

from leankv_sglang.server.install import install_http

install_http(app)

__all__ = ["app"]
