"""Traces: what a unit of work took, told once and carried up through outages."""
