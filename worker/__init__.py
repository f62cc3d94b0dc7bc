"""The worker: a thin Celery parent that owns leases, and a child process that compresses.

Only the child imports torch, so CUDA never meets a fork and every death of the child is seen and recorded.
"""
