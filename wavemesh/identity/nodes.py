"""Who a node is: SPIFFE ids and node paths.

Every node has one URI SAN, ``spiffe://FLEET/PATH`` (SPIFFE ID standard, section 2). The path alone tells the role:

    control/NAME                             control plane replica
    operator/NAME                            a person or a service that drives the operator API
    region/R                                 super hub
    region/R/store/S                         store hub
    region/R/store/S/device/D                device

The parent of a node is its path without the last two segments; a super hub's parent is control. Authorisation is by the
id in the TLS certificate, never by a field in a message.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import lru_cache

from wavemesh.errors import PeerError

_SEGMENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_URI = re.compile(r"spiffe://([^/]+)/(.+)")


class Role(enum.Enum):
    """What a node is in the mesh."""

    CONTROL = "control"
    OPERATOR = "operator"
    SUPER_HUB = "superhub"
    STORE_HUB = "storehub"
    DEVICE = "device"


_ROLE_BY_SHAPE: dict[tuple[str, ...], Role] = {
    ("control",): Role.CONTROL,
    ("operator",): Role.OPERATOR,
    ("region",): Role.SUPER_HUB,
    ("region", "store"): Role.STORE_HUB,
    ("region", "store", "device"): Role.DEVICE,
}


class BadNodeIdError(PeerError):
    """A SPIFFE id or node path is not of the form this module describes."""

    reason = "BAD_NODE_ID"


@dataclass(frozen=True, slots=True, order=True)
class NodeId:
    """Identity of one node: the fleet (trust domain) and the node's path in it."""

    fleet: str
    path: str

    def __post_init__(self) -> None:
        """Refuse a path that no role has."""
        parts = self.path.split("/")
        if tuple(parts[0::2]) not in _ROLE_BY_SHAPE or len(parts) % 2:
            msg = f"node path {self.path!r} is none of control/N, operator/N, region/R[/store/S[/device/D]]"
            raise BadNodeIdError(msg)
        for name in (self.fleet.replace(".", "-"), *parts[1::2]):
            if not is_name(name):
                msg = f"name {name!r} in {self.path!r}: use 1 to 63 of a-z, 0-9 and '-', not at either end"
                raise BadNodeIdError(msg)

    @classmethod
    def parse(cls, uri: str) -> NodeId:
        """Read ``spiffe://FLEET/PATH``; raises BadNodeIdError."""
        match = _URI.fullmatch(uri)
        if match is None:
            msg = f"{uri!r} is not of the form spiffe://FLEET/PATH"
            raise BadNodeIdError(msg)
        return cls(match[1], match[2])

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        return f"spiffe://{self.fleet}/{self.path}"

    @property
    def role(self) -> Role:
        """What the node is."""
        return _role(self.path)

    @property
    def name(self) -> str:
        """The last segment, for people: "pos-03"."""
        return self.path.rsplit("/", 1)[1]

    @property
    def dns_name(self) -> str:
        """The DNS SAN of the node's certificate, by which a child checks that it speaks to its own parent."""
        names = self.path.split("/")[1::2]
        return ".".join([*reversed(names), self.role.value, self.fleet])

    def is_child_of(self, parent: NodeId) -> bool:
        """Whether this node dials that one."""
        if self.fleet != parent.fleet:
            return False
        if self.role is Role.SUPER_HUB:
            return parent.role is Role.CONTROL
        if self.role in {Role.STORE_HUB, Role.DEVICE}:
            return self.path.rsplit("/", 2)[0] == parent.path
        return False


@lru_cache(maxsize=4096)
def _role(path: str) -> Role:
    return _ROLE_BY_SHAPE[tuple(path.split("/")[0::2])]


def is_name(text: str) -> bool:
    """Whether a node may have that name."""
    return _SEGMENT.fullmatch(text) is not None


def is_within(path: str, ancestor: str) -> bool:
    """Whether a node path is the ancestor itself or lies below it."""
    return path == ancestor or path.startswith(ancestor + "/")


def is_for(audience: tuple[str, ...], path: str) -> bool:
    """Whether a resource with that audience concerns the node at that path: it, what is below it, or all above it."""
    return not audience or any(is_within(path, a) or is_within(a, path) for a in audience)
