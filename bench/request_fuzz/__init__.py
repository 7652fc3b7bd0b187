"""Random requests, made from the server's own schemas, against a real server: it must answer after each of them."""
