"""The `flattengpt` command, the client of the HTTP API, and the demo."""
