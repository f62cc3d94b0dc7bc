"""The HTTP API: requests in, rows and events out. Imports no torch."""
