"""The one exception of this subpackage."""

from leankv_sglang.errors import LeanKVError


class ModelError(LeanKVError):
    """A model cannot be fetched, read or converted; `str(error)` is one sentence for the user."""
