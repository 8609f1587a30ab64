"""Slot back-ends behind the protocols of device/platform.py; ``simulated`` is the default."""
