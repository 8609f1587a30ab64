"""Logs, traces and metrics that survive outages."""
