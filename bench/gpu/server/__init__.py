"""The server on a GPU machine: packed for one without packages, checked and measured beside stock SGLang."""
