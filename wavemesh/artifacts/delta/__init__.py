"""Pairwise deltas: what of a target is not in the bases that somebody holds.

``codec`` makes and rebuilds, blocking, in the process that calls it. ``worker`` does the same in a process of its own
with bounds on memory, CPU and time; hubs use that one, because a payload comes from a peer and making one takes
a minute of CPU. What is rebuilt is believed by SHA-256 alone.
"""
