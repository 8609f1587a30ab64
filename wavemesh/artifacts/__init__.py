"""Blobs: their names, the content-addressed store, and moving them between tiers."""
