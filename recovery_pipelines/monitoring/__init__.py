"""Health monitoring: collectors, health checks, the process that runs them, and their store.

The collector process imports neither pandas nor Dagster: it must be cheap to leave on.
"""
