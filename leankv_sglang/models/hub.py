"""Whether a name is a model of a hub that can be had, before anything waits for it."""

from __future__ import annotations

import os
import re

from .errors import ModelError

SECONDS = 5.0
"""How long the hub may take to say that a model is there."""
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_hub_name(name: str, flag: str) -> None:
    """Check that a name which is no folder is in the local cache of the Hugging Face hub, or that the hub has it.

    Names with a scheme (``s3://``) and those meant for another hub (``SGLANG_USE_MODELSCOPE``) are let pass.

    Args:
        name: what the user gave.
        flag: what it was given by.

    Raises:
        ModelError: no such model, one that wants a token, or no hub in ``SECONDS``.
    """
    if "://" in name or os.environ.get("SGLANG_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return
    if not _NAME.fullmatch(name):
        raise ModelError(f"{flag} {name} is neither a folder nor a name that a hub could have.")
    import requests
    from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    here = f"{flag} {name} is no folder here"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{here}, nor in the cache of the hub, which HF_HUB_OFFLINE keeps closed; give a folder.")
    token = get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    url = hf_hub_url(name, "config.json")
    try:
        answer = requests.head(url, headers=headers, timeout=SECONDS, allow_redirects=True)
    except requests.RequestException:
        raise ModelError(
            f"{here}, and {constants.ENDPOINT} cannot be reached; give a folder, or a name that "
            "`python -m leankv_sglang.models` lists."
        ) from None
    if answer.status_code in (401, 403):
        raise ModelError(f"{here}, and the hub has no such model for you; set HF_TOKEN if it is a gated one.")
    if answer.status_code == 404:
        raise ModelError(f"{here}, and the hub has no model of that name with a config.json.")
