"""Blobs named by their digest: storing, finding and moving them."""
