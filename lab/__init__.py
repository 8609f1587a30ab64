"""A store in a box: the whole mesh as real processes on one machine, a WAN to cut and power to fail."""
