"""Contains one probe and runs it: ``python -I -S probe_launcher.py MODE USER CPU_S HIDDEN SHOWN COMMAND``.

Why a program of its own, of the standard library alone: a bare interpreter starts in about 10 ms, as fast as a chain
of util-linux's tools, and needs none of them; it works on itself, so nothing of this happens in a fork of the agent;
and only a system call makes a whole tree of mounts read-only at once.

Three processes. The *outer* enters new namespaces: network (not even a loopback that is up), processes, mounts, IPC, as
an ordinary user through a user namespace. The *first* of the process namespace makes the probe's view: everything read
only, but an empty small /tmp; HIDDEN (the agent's own directory) empty save SHOWN; a /proc of its own. It never changes
its identity, so it ends with the outer process for certain, and whatever it leaves dies with it, sessions and daemons
too. The *probe* has limits, another user where the launcher is root, no capability and no way to gain one.

MODE ``required``: what cannot be had ends in exit code 125 and a line that says what is missing. ``best-effort``: the
rest is done without it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED_EXIT_CODE = 125
REQUIRED = "required"
MAX_FILE_BYTES = 1024 * 1024
MAX_MEMORY_BYTES = 1024 * 1024 * 1024
MAX_OPEN_FILES = 64
# Counted over all probes of the same user on this machine.
MAX_PROCESSES = 256
_SCRATCH = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # covered, not used
_FIRST_TO_DIE = "1000"

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x20000, 0x8000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITIES = 64
_SYS_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY = 442, 1
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_LIBC = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def main(arguments: list[str]) -> int:
    """Run the probe; its exit code, 128 + signal if one killed it, ``REFUSED_EXIT_CODE`` without containment."""
    mode, user, cpu_s, hidden, shown, command = arguments
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE, encoding="ascii")
    is_separate = _try(mode, "no namespaces of its own", _separate)
    child = os.fork()
    if child:
        return _end_of(child)
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if is_separate:
        _try(mode, "no view of its own", lambda: _cover(Path(hidden).resolve(), Path(shown).resolve()))
    child = os.fork()
    if child:
        return _end_of(child)
    return _run(mode, user, int(cpu_s), command, counts_alone=is_separate)


def _run(mode: str, user: str, cpu_s: int, command: str, *, counts_alone: bool) -> NoReturn:
    is_root = os.geteuid() == 0
    for kind, most in _limits(cpu_s).items():
        # An ordinary user's other processes count as well, unless it is in a user namespace.
        if kind != resource.RLIMIT_NPROC or is_root or counts_alone:
            _limit(kind, most)
    if is_root:
        _try(mode, f"cannot become user {user!r}", lambda: _become(user))
    _try(mode, "privileges cannot be given up for good", _give_up)
    os.chdir("/")
    os.execv("/bin/sh", ["/bin/sh", "-c", command])  # noqa: S606  # running it is what this program is for


def _try(mode: str, missing: str, step: Callable[[], None]) -> bool:
    """Whether a part of the containment could be had; ends the program if it could not and must."""
    try:
        step()
    except (OSError, LookupError) as error:
        if mode == REQUIRED:
            sys.stderr.write(f"containment: {missing}: {error} (probe_containment = required)\n")
            sys.stderr.flush()
            os._exit(REFUSED_EXIT_CODE)
        return False
    return True


def _end_of(child: int) -> int:
    """Wait for the child and for whatever is handed over to us by its end."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _separate() -> None:
    flags = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    if os.geteuid() == 0:
        _check(_LIBC.unshare(flags))
        return
    user, group = os.geteuid(), os.getegid()
    _check(_LIBC.unshare(flags | _CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def _cover(hidden: Path, shown: Path) -> None:
    """Read-only everywhere; empty scratch; the agent's directory hidden but for what it shows."""
    os.umask(0o022)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    try:
        descriptor = os.open(shown, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        descriptor = -1
    for name in (*_SCRATCH, str(_first_closed(hidden))):
        if Path(name).is_dir():
            _mount("tmpfs", name, "tmpfs", _MS_NOSUID | _MS_NODEV, b"size=1m,mode=0755")
    if descriptor >= 0:
        with suppress(FileExistsError):
            shown.mkdir(mode=0o755, parents=True)
        _mount(f"/proc/self/fd/{descriptor}", str(shown), None, _MS_BIND | _MS_REC)
        os.close(descriptor)
    try:
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError:
        # Forbidden where parts of /proc are masked; none at all is better than that of other processes.
        _mount("tmpfs", "/proc", "tmpfs", _MS_NOSUID | _MS_NODEV)
    _set_attributes("/", _AT_RECURSIVE, _MountAttributes(attr_set=_MOUNT_ATTR_RDONLY))
    _set_attributes(_SCRATCH[0], 0, _MountAttributes(attr_clr=_MOUNT_ATTR_RDONLY))
    Path(_SCRATCH[0]).chmod(0o1777)


def _first_closed(directory: Path) -> Path:
    """The highest directory on the way that not everybody may pass, else the last: what is shown must be reachable."""
    ways = [path for path in reversed(directory.parents) if path != Path("/")]
    return next((path for path in ways if path.is_dir() and not path.stat().st_mode & 0o001), directory)


def _limits(cpu_s: int) -> dict[int, int]:
    return {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_AS: MAX_MEMORY_BYTES,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_NPROC: MAX_PROCESSES,
        resource.RLIMIT_CORE: 0,
    }


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))


def _become(user: str) -> None:
    entry = pwd.getpwnam(user)
    if entry.pw_uid == 0:
        msg = "that is root"
        raise LookupError(msg)
    # The right to drop the bounding set goes with the identity.
    _drop_bounding_set()
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def _give_up() -> None:
    """No way to gain a privilege; those of a user namespace's maker end with exec, as its identity is not root's."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _drop_bounding_set() -> None:
    for capability in range(_CAPABILITIES):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            if ctypes.get_errno() != errno.EINVAL:
                _check(-1)
            return  # past the last one this kernel knows


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: bytes | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _check(_LIBC.mount(*words, ctypes.c_ulong(flags), data))


def _set_attributes(path: str, flags: int, attributes: _MountAttributes) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    number = ctypes.c_long(_SYS_MOUNT_SETATTR)
    _check(_LIBC.syscall(number, _AT_FDCWD, path.encode(), ctypes.c_uint(flags), ctypes.byref(attributes), size))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
