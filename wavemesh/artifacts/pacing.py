"""How much one message of a transfer holds: what its reader takes in a moment.

A message that a cut link leaves incomplete is lost in full and is sent again, so whoever reads slowly gets small ones.
Large ones cost less CPU a byte, so whoever reads fast gets large ones. What a cut can cost is thus bounded in time and
not in bytes: ``MOMENT_S`` of the reader's own speed.
"""

from __future__ import annotations

LEAST_WINDOWED_BYTES = 4 * 1024
LEAST_MESSAGE_BYTES = 32 * 1024
FIRST_MESSAGE_BYTES = 64 * 1024
MOST_MESSAGE_BYTES = 512 * 1024
MOMENT_S = 0.05


def next_message_bytes(message_bytes: int, took_s: float) -> int:
    """Size of the next message, bytes, after one of ``message_bytes`` was taken in ``took_s`` seconds.

    Half as large when it took longer than MOMENT_S, twice as large when it took less than half of it.
    """
    if took_s > MOMENT_S:
        return max(message_bytes // 2, LEAST_MESSAGE_BYTES)
    if took_s < MOMENT_S / 2:
        return min(message_bytes * 2, MOST_MESSAGE_BYTES)
    return message_bytes


def most_message_bytes(window_bytes: int) -> int:
    """The largest message, bytes, for a reader that lets so many be on the way; 0 where it does not say.

    A message that has begun comes to its end whatever the window: one of half a megabyte would be the queue itself.
    """
    return max(window_bytes // 4, LEAST_WINDOWED_BYTES) if window_bytes else MOST_MESSAGE_BYTES
