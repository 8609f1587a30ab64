"""The RAUC service on its bus, as the agent speaks to it: blocking calls, for one thread at a time.

Rules. A client speaks to the one process that owned RAUC's name when it opened: one that is started later knows nothing
of what was begun, so its silence about it must not look like an end. Every call has a time limit. RAUC's texts are
evidence for people; ``gate_of`` tells from them which gate refuses, and what it does not know is a fault of the device.

Written against the D-Bus interface of RAUC 1.8, ``de.pengutronix.rauc.Installer``.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jeepney import DBusAddress, DBusErrorResponse, HeaderFields, MatchRule, Properties, message_bus, new_method_call
from jeepney.auth import AuthenticationError
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

from wavemesh.errors import LocalError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jeepney.io.blocking import DBusConnection
    from jeepney.low_level import Message

NAME = "de.pengutronix.rauc"
_PATH, _INTERFACE = "/", f"{NAME}.Installer"
_CALL_S = 10.0
_MARK_S = 60.0  # runs the handler of the boot environment several times
_START_S = 5.0
_IDLE = "idle"
POLL_S = 0.2
_MAX_TEXT = 500

# What RAUC 1.8 says, and what it means for the wave; looked through in this order.
_GATES = (
    ("signature verification failed", Gate.SIGNATURE),
    ("Invalid bundle", Gate.SIGNATURE),
    ("Compatible mismatch", Gate.CLASS),
    ("No target slot for class", Gate.HARDWARE),
    ("too small for image", Gate.DUAL_PARTITION),
    ("Destination device", Gate.DUAL_PARTITION),
    ("No space left", Gate.DISK),
)


class RaucError(LocalError):
    """RAUC did not do what it was asked to; the message has its own words."""

    reason = "RAUC"


class RaucGoneError(RaucError):
    """The bus or the service is not there, or went away under way."""

    reason = "RAUC_GONE"


class RaucState(enum.Enum):
    """What RAUC can be asked to mark a slot as."""

    GOOD = "good"
    BAD = "bad"
    ACTIVE = "active"


def gate_of(last_error: str) -> Gate:
    """The gate that refuses when an installation ends with these words."""
    return next((gate for text, gate in _GATES if text in last_error), Gate.DISK)


class RaucClient:
    """One connection to the bus and the service behind it; ``close`` it."""

    def __init__(self, address: str) -> None:
        """Connect, and wait a moment for a service that is being started; raises RaucGoneError."""
        self._address = address
        with self._faults("connecting"):
            self._connection: DBusConnection = open_dbus_connection(address)
        try:
            self._owner = self._find_owner()
            self._installer = DBusAddress(_PATH, bus_name=self._owner, interface=_INTERFACE)
            self._completed: deque[Message] = deque(maxlen=8)
            rule = MatchRule(type="signal", interface=_INTERFACE, member="Completed", path=_PATH)
            self._connection.filter(rule, queue=self._completed)
            self._call(message_bus.AddMatch(rule), "listening")
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Leave the bus; what RAUC is doing it goes on doing."""
        self._connection.close()

    def booted(self) -> str:
        """Boot name of the slot that RAUC takes for the running one; raises RaucError."""
        return str(self._property("BootSlot"))

    def devices(self) -> dict[str, str]:
        """The device of every slot that can be booted, by boot name; raises RaucError."""
        [slots] = self._call(new_method_call(self._installer, "GetSlotStatus"), "GetSlotStatus", _MARK_S)
        fields = [{name: value for name, (_, value) in status.items()} for _, status in slots]
        return {str(one["bootname"]): str(one.get("device", "")) for one in fields if "bootname" in one}

    def is_busy(self) -> bool:
        """Whether it installs something just now."""
        return str(self._property("Operation")) != _IDLE

    def percent(self) -> int:
        """How far RAUC says it is, 0 to 100."""
        percent, _, _ = self._property("Progress")
        return min(max(int(percent), 0), 100)

    def last_error(self) -> str:
        """What RAUC says of the installation that failed last."""
        return str(self._property("LastError"))[:_MAX_TEXT]

    def install(self, bundle: Path) -> None:
        """Begin to install; ``finished`` tells when it is over."""
        self._completed.clear()
        body: tuple[str, dict[str, Any]] = (str(bundle), {})
        self._call(new_method_call(self._installer, "InstallBundle", "sa{sv}", body), "InstallBundle")

    def finished(self, patience_s: float) -> bool | None:
        """How the installation ended, None if it did not within that time; raises RaucGoneError.

        A service that died sends no signal; it is ``percent`` that it does not answer any more.
        """
        deadline_s = time.monotonic() + patience_s
        with self._faults("waiting for the installation"):
            while True:
                while self._completed:
                    message = self._completed.popleft()
                    if message.header.fields.get(HeaderFields.sender) == self._owner:
                        return bool(message.body[0] == 0)
                try:
                    self._connection.recv_messages(timeout=max(0.0, deadline_s - time.monotonic()))
                except TimeoutError:
                    return None

    def mark(self, state: RaucState, slot: str) -> None:
        """Mark the slot with that boot name, through the handler of the boot environment; raises RaucError."""
        which = "booted" if slot == self.booted() else "other"
        self._call(new_method_call(self._installer, "Mark", "ss", (state.value, which)), f"Mark {state.value}", _MARK_S)

    def _find_owner(self) -> str:
        rule = MatchRule(type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged")
        rule.add_arg_condition(0, NAME)
        self._call(message_bus.AddMatch(rule), "listening")
        deadline_s = time.monotonic() + _START_S
        with self._connection.filter(rule) as changes:
            while True:
                owner = self._owner_now()
                if owner:
                    return owner
                with self._faults("waiting for the service"):
                    self._connection.recv_until_filtered(changes, timeout=max(0.0, deadline_s - time.monotonic()))

    def _owner_now(self) -> str:
        """Who has RAUC's name; a bus that can start the service does so."""
        with self._faults("looking for the service"):
            self._connection.send_and_get_reply(message_bus.StartServiceByName(NAME), timeout=_CALL_S)
            reply = self._connection.send_and_get_reply(message_bus.GetNameOwner(NAME), timeout=_CALL_S)
        try:
            return str(unwrap_msg(reply)[0])
        except DBusErrorResponse:
            return ""

    def _property(self, name: str) -> Any:
        [(_, value)] = self._call(Properties(self._installer).get(name), name)
        return value

    def _call(self, message: Message, what: str, limit_s: float = _CALL_S) -> Any:
        with self._faults(what):
            reply = self._connection.send_and_get_reply(message, timeout=limit_s)
        try:
            return unwrap_msg(reply)
        except DBusErrorResponse as error:
            text = str(error.data[0])[:_MAX_TEXT] if error.data else str(error.name)
            gone = str(error.name).endswith(("ServiceUnknown", "NoReply", "NameHasNoOwner", "Disconnected"))
            msg = f"RAUC at {self._address}: {what}: {text}"
            if gone:
                raise RaucGoneError(f"{msg}; is the service up? systemctl status rauc") from error
            if "No such property" in text or str(error.name).endswith(("UnknownMethod", "UnknownProperty")):
                raise RaucError(f"{msg}; RAUC 1.8 or later is needed") from error
            raise RaucError(msg) from error

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            msg = f"RAUC at {self._address}: {what}: {why}; is the service up? systemctl status rauc"
            raise RaucGoneError(msg) from error
