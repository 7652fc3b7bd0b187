"""The error people see."""


class LeanKVError(Exception):
    """One clear sentence that says what is wrong and what to do."""
