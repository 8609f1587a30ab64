"""Resumable sessions between a child and its parent, the same on all three hops."""
