"""The network that is broken: links by name, each in one condition at a time.

*Machines* (root): each site has a network namespace, sites are joined by veth pairs, and a store's devices reach its
hub over that namespace's loopback. Conditions are made by the kernel: iptables resets (cut), drops (half-open) or drops
at random (lossy), and tbf throttles. *Proxies* (anybody): the lab's WAN proxies are commanded by a rhythm instead; a
link that loses packets is one that stands still now and then, as TCP makes of it. There the LAN has no link to break.
"""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING, Protocol

from lab.injectors import tell_wan
from lab.topology import CONTROL_LINK
from tests.chaos.script import Kind

if TYPE_CHECKING:
    from lab.topology import Lab

UPLINK = "uplink"
_LOSS = 0.2
_RATE = ("rate", "256kbit", "burst", "16k", "latency", "500ms")
_FLAP_S = 0.4
_LOOPBACK_MTU = "1500"
_TIMEOUT_S = 20


class Network(Protocol):
    """Links that can be broken and healed."""

    @property
    def links(self) -> tuple[str, ...]:
        """Names of all links."""
        ...

    def apply(self, link: str, kind: Kind, elapsed_s: float) -> None:
        """Bring the link into the condition that the fault has so long after it began; called over and over."""
        ...

    def heal(self, link: str) -> None:
        """Make the link whole."""
        ...


def flaps_down(elapsed_s: float) -> bool:
    """Whether a flapping link is down."""
    return int(elapsed_s / _FLAP_S) % 2 == 0


class Machines:
    """Namespaces and veth pairs; what they are is in ``tests/chaos/place.py``."""

    def __init__(self, ends: dict[str, tuple[tuple[str, str], ...]]) -> None:
        """``ends``: by link its ends as (namespace, device), the one where rules are put first."""
        self._ends = ends
        self._conditions: dict[str, Kind | None] = dict.fromkeys(ends)

    @property
    def links(self) -> tuple[str, ...]:
        """Names of all links."""
        return tuple(self._ends)

    def apply(self, link: str, kind: Kind, elapsed_s: float) -> None:
        """Put the kernel's rules there; a flapping link is half-open and whole by turns."""
        wanted: Kind | None = kind
        if kind is Kind.FLAPPING:
            wanted = Kind.HALF_OPEN if flaps_down(elapsed_s) else None
        if wanted is self._conditions[link]:
            return
        self.heal(link)
        self._conditions[link] = wanted
        if wanted is Kind.THROTTLED:
            for namespace, device in self._ends[link]:
                inside(namespace, "tc", "qdisc", "add", "dev", device, "root", "tbf", *_RATE)
        elif wanted is not None:
            self._rules("-A", link, wanted)

    def heal(self, link: str) -> None:
        """Take the rules away."""
        kind, self._conditions[link] = self._conditions[link], None
        if kind is Kind.THROTTLED:
            for namespace, device in self._ends[link]:
                inside(namespace, "tc", "qdisc", "del", "dev", device, "root")
        elif kind is not None:
            self._rules("-D", link, kind)

    def _rules(self, verb: str, link: str, kind: Kind) -> None:
        namespace, device = self._ends[link][0]
        rule = {
            # A reset passes, or the rule would swallow its own.
            Kind.CUT: ["-p", "tcp", "!", "--tcp-flags", "RST", "RST", "-j", "REJECT", "--reject-with", "tcp-reset"],
            Kind.HALF_OPEN: ["-j", "DROP"],
            Kind.LOSSY: ["-m", "statistic", "--mode", "random", "--probability", str(_LOSS), "-j", "DROP"],
        }[kind]
        # What leaves by the loopback comes in by it again, and is to be lost once.
        ways = (("OUTPUT", "-o"),) if device == "lo" else (("INPUT", "-i"), ("OUTPUT", "-o"))
        for chain, direction in ways:
            inside(namespace, "iptables", "-w", verb, chain, direction, device, *rule)


class Proxies:
    """The lab's WAN proxies, commanded by a rhythm."""

    def __init__(self, lab: Lab) -> None:
        """All links pass."""
        self._lab = lab
        self._names = {UPLINK: CONTROL_LINK, **{f"wan/{store}": store for store in lab.stores}}
        self._verbs = dict.fromkeys(self._names, "restore")

    @property
    def links(self) -> tuple[str, ...]:
        """Names of all links."""
        return tuple(self._names)

    def apply(self, link: str, kind: Kind, elapsed_s: float) -> None:
        """Command the proxy, if the rhythm says something new."""
        self._tell(link, verb_at(kind, elapsed_s))

    def heal(self, link: str) -> None:
        """Let it pass."""
        self._tell(link, "restore")

    def _tell(self, link: str, verb: str) -> None:
        if self._verbs[link] != verb:
            tell_wan(self._lab, verb, self._names[link])
            self._verbs[link] = verb


def verb_at(kind: Kind, elapsed_s: float) -> str:
    """What a proxy is told so long after the fault began; raises KeyError for what is no fault of a link."""
    tick = int(elapsed_s / _FLAP_S)
    stands = random.Random(tick).random() < _LOSS
    return {
        Kind.CUT: "cut",
        Kind.HALF_OPEN: "blackhole",
        Kind.THROTTLED: "restore" if tick % 4 == 0 else "blackhole",
        Kind.LOSSY: "blackhole" if stands else "restore",
        Kind.FLAPPING: "cut" if flaps_down(elapsed_s) else "restore",
    }[kind]


def inside(namespace: str, *command: str) -> None:
    """Run a command in a network namespace, "" for our own; raises CalledProcessError."""
    prefix = ("nsenter", f"--net=/run/netns/{namespace}") if namespace else ()
    subprocess.run([*prefix, *command], check=True, timeout=_TIMEOUT_S)


def join(near: tuple[str, str, str], far: tuple[str, str, str]) -> None:
    """Join two namespaces, "" for our own, by a veth pair; each end as (namespace, device, "10.0.0.1/30")."""
    inside("", "ip", "link", "add", "name", near[1], "type", "veth", "peer", "name", far[1])
    for namespace, device, address in (near, far):
        if namespace:
            inside("", "ip", "link", "set", "dev", device, "netns", namespace)
        inside(namespace, "ip", "address", "add", address, "dev", device)
        inside(namespace, "ip", "link", "set", "dev", device, "up")


def add_namespace(name: str) -> None:
    """A namespace with a loopback whose packets are as small as those of a wire, for tbf to hold back."""
    inside("", "ip", "netns", "add", name)
    inside(name, "ip", "link", "set", "lo", "mtu", _LOOPBACK_MTU, "up")
