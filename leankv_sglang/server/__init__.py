"""The request and start side: flags, the HTTP field, the banner, what happens before SGLang's server runs."""
