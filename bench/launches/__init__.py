"""What a step of the server gives a GPU to do, and where the host would wait for it; see ``__main__``."""
