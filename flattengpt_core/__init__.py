"""FlattenGPT's compression library: a checkpoint and text in, a shallower stock checkpoint out.

Knows nothing of HTTP, queues or databases. Importing this package imports no torch; see `pipeline` for the
one function that does the whole job.
"""
