"""``edgectl wave``: plan, start, pause, resume, halt, watch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.intents import IntentIdOption, ReasonOption, new_intent_id, now, submit
from edgectl.tables import wave_parts, waves_table

if TYPE_CHECKING:
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

app = typer.Typer(help="Plan waves, start and stop them, see how they go.", no_args_is_help=True)

WaveOption = Annotated[str, typer.Option("--wave", help="The wave's id.")]
PolicyOption = Annotated[Path, typer.Option("--policy", help="The policy file.")]
_PAGE_SIZE = 1000


@command(app, "plan")
def plan(
    session: Session,
    *,
    wave: WaveOption,
    cohort: Annotated[str, typer.Option("--cohort", help="The cohort, as the policy's segment names it.")],
    policy: PolicyOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the plan would be.")] = False,
) -> None:
    """Plan a wave from a policy. Planned again from the same policy, nothing changes."""
    from edgectl.files import read_file
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import PlanWaveRequest

    request = PlanWaveRequest(
        wave_id=wave, cohort=cohort, policy_yaml=read_file(policy), policy_name=str(policy), dry_run=dry_run
    )
    answer = session.ask(lambda stub: stub.PlanWave(request, timeout=CALL_TIMEOUT_S))
    head = "would be planned" if dry_run else "was planned before" if answer.duplicate else "planned"
    data = plain(answer)
    session.show(data, f"wave {wave}: {head}", *wave_parts(data["wave"]))


@command(app, "start")
def start(
    session: Session,
    *,
    wave: WaveOption,
    cohort: Annotated[str, typer.Option("--cohort", help="Cross-check: the cohort the wave was planned for.")] = "",
    intent_id: IntentIdOption = None,
) -> None:
    """Start a planned wave. Raises risk, so a hub queues it for control."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    intent = OperatorIntent(new_intent_id(intent_id), IntentKind.START_WAVE, now(), wave_id=wave, cohort=cohort)
    submit(session, intent)


@command(app, "pause")
def pause(session: Session, *, wave: WaveOption, reason: ReasonOption, intent_id: IntentIdOption = None) -> None:
    """Pause a wave: no new swap starts, trials finish. A hub does it at once and tells control."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    submit(session, OperatorIntent(new_intent_id(intent_id), IntentKind.PAUSE_WAVE, now(), wave_id=wave, reason=reason))


@command(app, "resume")
def resume(session: Session, *, wave: WaveOption, reason: ReasonOption = "", intent_id: IntentIdOption = None) -> None:
    """Lift your own pause. Others' pauses stay in force. A hub queues it for control."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    submit(
        session, OperatorIntent(new_intent_id(intent_id), IntentKind.RESUME_WAVE, now(), wave_id=wave, reason=reason)
    )


@command(app, "halt")
def halt(session: Session, *, wave: WaveOption, reason: ReasonOption, intent_id: IntentIdOption = None) -> None:
    """Halt a wave for ever: trials roll back, permits are void. There is no resume."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    submit(session, OperatorIntent(new_intent_id(intent_id), IntentKind.HALT_WAVE, now(), wave_id=wave, reason=reason))


@command(app, "list")
def list_waves(session: Session) -> None:
    """Show the waves known to the node asked, newest first."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListWavesRequest

    request = ListWavesRequest(page_size=_PAGE_SIZE)
    data = plain(session.ask(lambda stub: stub.ListWaves(request, timeout=CALL_TIMEOUT_S)))
    session.show(data["waves"], waves_table(data["waves"]))


@command(app, "status")
def status(session: Session, *, wave: WaveOption) -> None:
    """Show one wave: state, stores, outcomes, what a halt would expose."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetWaveRequest

    request = GetWaveRequest(wave_id=wave)
    data = plain(session.ask(lambda stub: stub.GetWave(request, timeout=CALL_TIMEOUT_S)).wave)
    session.show(data, *wave_parts(data))


@command(app, "watch")
def watch(session: Session, *, wave: WaveOption) -> None:
    """Show the wave after every change until it closes. With JSON, one object a line."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import WatchWaveRequest

    async def follow(stub: OperatorServiceAsyncStub) -> None:
        async for answer in stub.WatchWave(WatchWaveRequest(wave_id=wave)):
            data = plain(answer.wave)
            session.show(data, *wave_parts(data))

    session.ask(follow)
