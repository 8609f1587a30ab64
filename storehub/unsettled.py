"""What devices hold by another hub's hand, while this hub has not heard from its super hub even once. Pure.

A hub that was replaced has an empty disk. Its emptiness is no word of control: served as it is, it would take every
order from every device, and they would stage again what they have staged. So until it has settled with its super hub
once, it takes nothing back that control gave: for each such resource a device says it holds, and this hub knows nothing
of, a stand-in of the same version and digest is wanted. It equals what is held, so nothing is ever sent for it.

What the hub itself gives, a lease above all, has no stand-in: this hub knows of no slot for a lease of the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.session.frames import Resource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wavemesh.session.frames import HeldResource, ResourceKey

OF_CONTROL = frozenset({"tuf", "holds", "revocations", "closed", "order", "policy", "intent"})
SETTLED_FACT = "settled_once"


class Unsettled:
    """What each connected device held when it came, as far as nothing else was wanted of it since."""

    def __init__(self) -> None:
        """Nobody is connected."""
        self._held: dict[str, dict[ResourceKey, Resource]] = {}

    def came(self, path: str, held: Iterable[HeldResource]) -> None:
        """A device says what it holds; at most ``MAX_HELD`` resources."""
        self._held[path] = {
            one.key: Resource(one.key, one.version, one.digest, b"") for one in held if one.key.type in OF_CONTROL
        }

    def left(self, path: str) -> None:
        """Its session ended."""
        self._held.pop(path, None)

    def stand_ins(self, path: str, wanted: Mapping[ResourceKey, Resource]) -> Mapping[ResourceKey, Resource]:
        """What stays as it is. What was wanted once has none any more: the device may hold that by now."""
        held = self._held.get(path, {})
        for key in wanted.keys() & held.keys():
            del held[key]
        return dict(held)

    def end(self) -> None:
        """This hub has heard what its super hub wants: from now on that is all."""
        self._held.clear()
