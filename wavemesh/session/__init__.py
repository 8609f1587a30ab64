"""The resumable session between a child and its parent."""
