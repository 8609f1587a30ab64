"""Keeps a node's certificate fresh: asks for the next one in time, or when a wave wants it, installs it, moves over.

Rules.
1. Due at half of the lifetime, spread over a further tenth. A new key each time.
2. A renewal that fails leaves the certificate in use alone, is told in the log with its reason, and is tried again with
   full jitter. What waits for it is shown by who waits; nothing here blocks anything else.
3. A wave asks once: when its renewal has succeeded, the same wave does not ask again, whatever two clocks say.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import LinkDownError, LocalError, PeerError
from wavemesh.identity.binding import issued_at, renew_at
from wavemesh.identity.csr import make_request
from wavemesh.identity.issuing import refusal
from wavemesh.session.backoff import full_jitter
from wavemesh.trust.enrolments import IssueAnswer, IssuedCertificate, RenewalRequest
from wavemesh.trust.envelope import sign_as_node

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from random import Random

    from cryptography.hazmat.primitives.asymmetric import ec

    from wavemesh.identity.live import LiveCredentials
    from wavemesh.runtime.clock import Clock

_LOG = logging.getLogger(__name__)
ASK_TIMEOUT_S = 20.0
RETRY_MIN_S = 2.0
RETRY_MAX_S = 600.0
LOOK_AGAIN_S = 3600.0
"""A clock may be set meanwhile, so the time until it is due is looked at again."""


class SessionUp(Protocol):
    """The part of the session upwards that renewal needs."""

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        """Ask the parent; raises PeerError or TimeoutError."""
        ...

    async def move(self) -> None:
        """Take the session over to a channel with the credentials in use now; raises LinkDownError."""
        ...


@dataclass(frozen=True, slots=True)
class RenewalOptions:
    """Patience between two attempts, seconds."""

    retry_min_s: float = RETRY_MIN_S
    retry_max_s: float = RETRY_MAX_S


class Renewal:
    """Renews the certificate of one node; ``run`` is its life."""

    def __init__(
        self,
        *,
        live: LiveCredentials,
        upstream: SessionUp,
        clock: Clock,
        rng: Random,
        obtain: Callable[[bytes, str], Awaitable[IssuedCertificate]] | None = None,
        allowed: Callable[[], bool] = lambda: True,
        renewed: Callable[[], None] = lambda: None,
        failed: Callable[[Exception], None] = lambda _: None,
        floor: Callable[[], datetime | None] = lambda: None,
        options: RenewalOptions = RenewalOptions(),
    ) -> None:
        """``obtain`` gets a certificate for a request and a wave, by default over the session; ``allowed`` says whether
        this is a moment for it; ``renewed`` is called once another certificate is in use, ``failed`` with why an
        attempt brought none. ``floor`` is a time that has passed for certain: it stands in for a clock behind it.
        """
        self._live = live
        self._upstream = upstream
        self._clock = clock
        self._rng = rng
        self._share = rng.random()
        self.issued_at: datetime = issued_at(live.current.certificate)
        """When the certificate in use was issued."""
        self._obtain = obtain
        self._allowed = allowed
        self._renewed = renewed
        self._failed = failed
        self._floor = floor
        self._options = options
        self._wanted = ""
        self._done_for = ""
        self._woken = asyncio.Event()

    def want(self, wave_id: str) -> None:
        """A wave wants a younger certificate; empty: none does any more. Told again it changes nothing."""
        if wave_id not in {self._wanted, self._done_for}:
            self._wanted = wave_id
            self._woken.set()
        elif not wave_id:
            self._wanted = ""

    async def run(self) -> None:
        """Renew whenever it is due, until cancelled."""
        attempt = 0
        while True:
            wait_s = self._wait_s()
            if wait_s > 0 or not self._allowed():
                await self._pause(wait_s if wait_s > 0 else self._options.retry_min_s)
                continue
            try:
                await self.renew(self._wanted)
                attempt = 0
            except (PeerError, LocalError, TimeoutError) as error:
                delay_s = full_jitter(self._options.retry_max_s, self._options.retry_min_s, attempt, self._rng.uniform)
                attempt += 1
                _LOG.warning("certificate not renewed: %s; again in %.1f s", error or "no answer", delay_s)
                self._failed(error)
                await self._pause(delay_s)

    async def renew(self, wave_id: str = "") -> None:
        """Renew now. Raises PeerError, LocalError, TimeoutError; the certificate in use stays when it does."""
        # A key in hardware may take its time: the loop does not wait for it.
        key = await asyncio.to_thread(self._live.keys.create)
        csr = await asyncio.to_thread(make_request, key, self._live.node_id.name)
        issued = await (self._obtain(csr, wave_id) if self._obtain is not None else self._ask(key, csr, wave_id))
        self._live.install(key, issued, self._now())
        self.issued_at = issued_at(self._live.current.certificate)
        if wave_id:
            self._done_for, self._wanted = wave_id, ""
        until = self._live.current.certificate.not_valid_after_utc.isoformat()
        _LOG.info("certificate of %s renewed, until %s", self._live.node_id.path, until)
        self._renewed()
        try:
            await self._upstream.move()
        except LinkDownError as error:
            _LOG.info("the next session takes the new certificate: %s", error)

    def _now(self) -> datetime:
        floor, now = self._floor(), self._clock.now()
        return now if floor is None else max(now, floor)

    def _wait_s(self) -> float:
        """Seconds until a renewal is due; none when a wave wants it."""
        if self._wanted:
            return 0.0
        due_in = renew_at(self._live.current.certificate, self._share) - self._now()
        return min(due_in.total_seconds(), LOOK_AGAIN_S)

    async def _pause(self, delay_s: float) -> None:
        self._woken.clear()
        try:
            async with asyncio.timeout(delay_s):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _ask(self, key: ec.EllipticCurvePrivateKey, csr: bytes, wave_id: str) -> IssuedCertificate:
        """Ask the authority of the region, through the parent."""
        evidence = await asyncio.to_thread(self._live.keys.evidence, key, csr)
        if evidence is not None:
            # What was booted is the device's health to say, and changes no certificate.
            evidence = replace(evidence, quote=None)
        request = RenewalRequest(self._live.node_id.path, csr, self._clock.now(), wave_id, evidence)
        body = encode(await asyncio.to_thread(sign_as_node, request, self._live))
        answer = decode(IssueAnswer, await self._upstream.ask("renew", body, ASK_TIMEOUT_S))
        if answer.issued is None:
            raise refusal(answer.refused, answer.detail)
        return answer.issued
