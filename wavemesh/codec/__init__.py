"""The only boundary between generated code and values."""
