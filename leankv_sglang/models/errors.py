"""The one exception of this subpackage."""


class ModelError(Exception):
    """A model cannot be fetched, read or converted; `str(error)` is one sentence for the user."""
