"""Load tests and side-by-side measurements: ``python -m bench NAME``."""
