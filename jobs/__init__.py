"""The life of a job, shared by the API and the worker: request, states, rows, events, leases.

Imports no torch and speaks no HTTP.
"""
