"""Probes are contained: unprivileged, timed, bounded in output and processes, without network (D2, D7, Trust)."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from device import probe_launcher
from device.config import ProbeContainment
from device.gates.findings import Verdict
from device.probes import Containment, ProbeRunner

PATH = {"PATH": os.environ["PATH"]}


@pytest.fixture
def runner(tmp_path: Path) -> ProbeRunner:
    """Under a device's directory, with contents that anybody could write if he got there."""
    device = tmp_path / "device"
    for name in ("state", "hardware"):
        (device / name).mkdir(parents=True)
        (device / name).chmod(0o777)
    (device / "node.key").write_text("secret")
    (device / "hardware" / "sensor").write_text("fine\n")
    containment = Containment(ProbeContainment.REQUIRED, "nobody", device, device / "hardware")
    return ProbeRunner(PATH, 20.0, containment)


async def test_a_probe_tells_its_end_and_output(runner: ProbeRunner) -> None:
    assert (await runner.run("vendor:x", "true")).passes
    finding = await runner.run("peripheral:scanner", "echo no scanner here; exit 3")
    assert finding.gate == "peripheral:scanner"
    assert "exit code 3; output: no scanner here" in finding.evidence


async def test_a_probe_that_cannot_be_started_fails(runner: ProbeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q2: a gate never raises, whatever the machine is short of."""
    monkeypatch.setattr("device.probes.sys.executable", "/nonexistent/python")
    finding = await runner.run("vendor:x", "true")
    assert finding.verdict is Verdict.BAD
    assert "could not be started: No such file or directory" in finding.evidence


async def test_a_probe_inherits_no_secrets(runner: ProbeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert (await runner.run("vendor:x", 'test -z "$SECRET"')).passes
    inherited = os.open("/dev/null", os.O_RDONLY)
    try:
        os.set_inheritable(inherited, True)
        assert (await runner.run("vendor:x", f"! test -e /proc/self/fd/{inherited}")).passes
    finally:
        os.close(inherited)


async def test_a_probe_is_nobody_and_stays_so(runner: ProbeRunner) -> None:
    status = await runner.run("vendor:x", "cat /proc/self/status; exit 1")
    for line in ("NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"):
        assert line in status.evidence
    assert (await runner.run("vendor:x", "test $(id -u) -ne 0")).passes
    assert (await runner.run("vendor:x", "test $(ulimit -n) -le 64 && test $(ulimit -c) = 0")).passes


async def test_a_probe_that_hangs_is_killed_with_all_it_started(runner: ProbeRunner) -> None:
    """Whatever it forked dies: here a daemon in a session of its own, out of reach of a group's signal."""
    mark = "987654.25"
    finding = await replace(runner, timeout_s=2.0).run("vendor:x", f"{daemon(mark)}; sleep {mark}")
    assert "did not end within 2 s; output: up" in finding.evidence
    await gone(mark)


async def test_what_a_probe_leaves_behind_is_killed(runner: ProbeRunner) -> None:
    mark = "987654.5"
    assert (await runner.run("vendor:x", daemon(mark))).passes
    assert not processes(mark)


async def test_a_probe_that_forks_without_end_is_bounded(runner: ProbeRunner) -> None:
    mark = "987654.75"
    more = probe_launcher.MAX_PROCESSES + 10
    finding = await runner.run("vendor:x", f"for i in $(seq {more}); do sleep {mark} & done; echo all")
    assert "ork" in finding.evidence
    assert finding.verdict is Verdict.BAD
    assert not processes(mark)


async def test_a_probe_that_floods_is_killed(runner: ProbeRunner) -> None:
    finding = await runner.run("vendor:x", "yes")
    assert "wrote more than" in finding.evidence
    assert len(finding.evidence) < 2000


async def test_a_probe_writes_nowhere(runner: ProbeRunner) -> None:
    """Neither the agent's state nor the system nor its hardware; a small /tmp of its own is gone with it."""
    hidden = runner.containment.hidden
    for directory in (hidden / "state", hidden / "hardware", hidden, Path("/"), Path("/var/tmp")):
        file = directory / "written-by-a-probe"
        assert (await runner.run("vendor:x", f"echo x > {file}")).verdict is Verdict.BAD
        assert not file.exists()
    scratch = Path("/tmp") / file.name
    assert (await runner.run("vendor:x", f"echo x > {scratch} && cat {scratch}")).passes
    assert (await runner.run("vendor:x", f"! test -e {scratch}")).passes
    big = await runner.run("vendor:x", "head -c 3000000 /dev/zero > /tmp/big")
    assert big.verdict is Verdict.BAD


async def test_a_probe_sees_the_hardware_and_none_of_the_agents_secrets(runner: ProbeRunner) -> None:
    hidden = runner.containment.hidden
    assert (await runner.run("vendor:x", f"grep -q fine {hidden}/hardware/sensor")).passes
    assert (await runner.run("vendor:x", f"! test -e {hidden}/node.key && ! test -e {hidden}/state")).passes
    assert (await runner.run("vendor:x", "test $(ls -d /proc/[0-9]* | wc -l) -lt 10")).passes


async def test_a_probe_has_no_network(runner: ProbeRunner) -> None:
    """The same command reaches the listener from outside."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        command = f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'"
        free = await asyncio.create_subprocess_shell(command)
        assert await free.wait() == 0
        finding = await runner.run("vendor:x", command)
    assert finding.verdict is Verdict.BAD
    assert "unreachable" in finding.evidence


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
async def test_a_probe_that_must_be_contained_and_cannot_does_not_run(runner: ProbeRunner) -> None:
    """Required: its gate fails and says what is missing. Best effort: it runs all the same."""
    unknown = replace(runner, containment=replace(runner.containment, user="no-such-user"))
    finding = await unknown.run("peripheral:scanner", "echo ran")
    assert finding.gate == "peripheral:scanner"
    assert "output: containment: cannot become user 'no-such-user'" in finding.evidence
    lenient = replace(unknown, containment=replace(unknown.containment, mode=ProbeContainment.BEST_EFFORT))
    assert (await lenient.run("peripheral:scanner", "true")).passes


@pytest.mark.parametrize("mode", ProbeContainment)
def test_a_kernel_without_namespaces(mode: ProbeContainment, runner: ProbeRunner) -> None:
    code = (
        "import errno, sys; sys.path.insert(0, sys.argv.pop(1)); import probe_launcher as launcher\n"
        "def refuse(): raise PermissionError(errno.EPERM, 'not permitted')\n"
        "launcher._separate = refuse; sys.exit(launcher.main(sys.argv[1:]))"
    )
    program, _, _, _, *arguments = replace(runner.containment, mode=mode).launcher(5)
    folder = str(Path(probe_launcher.__file__).parent)
    command = [program, "-I", "-S", "-c", code, folder, *arguments, "exit 7"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=PATH)
    is_required = mode is ProbeContainment.REQUIRED
    assert done.returncode == (probe_launcher.REFUSED_EXIT_CODE if is_required else 7), done.stderr
    assert ("no namespaces of its own: [Errno 1] not permitted" in done.stderr) is is_required


def daemon(mark: str) -> str:
    """Fork twice, leave the session, and go on only once the daemon is up."""
    inner = f"echo up > /tmp/up; exec sleep {mark} > /dev/null 2>&1"
    return f"(setsid sh -c '{inner}' &) & until cat /tmp/up 2> /dev/null; do sleep 0.02; done"


def processes(mark: str) -> list[int]:
    """Processes of this machine whose command line ends in the mark."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", mark.encode()]:
            found.append(int(file.parent.name))
    return found


async def gone(mark: str) -> None:
    """Wait until no such process is left; ``pidfd`` tells without looking again and again."""
    for pid in processes(mark):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(5):
                await ended.wait()
        finally:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
