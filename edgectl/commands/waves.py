"""``edgectl wave``: plan, start, pause, resume, halt; list, show, watch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import cohort_names, release_names, store_names, wave_ids
from edgectl.effects import YesOption, confirm, preview
from edgectl.framework import DEFAULT_LIMIT, DryRunOption, LimitOption, Session, command
from edgectl.intents import IntentIdOption, ReasonOption, new_intent_id, now, submit
from edgectl.tables import wave_parts, waves_table
from edgectl.transfers import delivery_parts, forecast_parts

if TYPE_CHECKING:
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

app = typer.Typer(help="Plan waves, start and stop them, see how they go.", no_args_is_help=True)

WaveOption = Annotated[str, typer.Option("--wave", help="The wave's id.", autocompletion=wave_ids)]
PolicyOption = Annotated[Path, typer.Option("--policy", help="The policy file.")]


@command(app, "plan")
def plan(
    session: Session,
    *,
    wave: WaveOption,
    cohort: Annotated[
        str,
        typer.Option("--cohort", help="The cohort; `edgectl cohort list` has the names.", autocompletion=cohort_names),
    ],
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
    session.show(data, f"wave {wave}: {head}", *wave_parts(data["wave"]), *forecast_parts(data["forecast"]))


@command(app, "start")
def start(
    session: Session,
    *,
    wave: WaveOption,
    cohort: Annotated[
        str,
        typer.Option("--cohort", help="Cross-check: the cohort the wave was planned for.", autocompletion=cohort_names),
    ] = "",
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Start a planned wave. Raises risk, so a hub queues it for control."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    intent = OperatorIntent(new_intent_id(intent_id), IntentKind.START_WAVE, now(), wave_id=wave, cohort=cohort)
    (preview if dry_run else submit)(session, intent)


@command(app, "pause")
def pause(
    session: Session,
    *,
    wave: WaveOption,
    reason: ReasonOption,
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Pause a wave: no new swap starts, trials finish. A hub does it at once and tells control."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    intent = OperatorIntent(new_intent_id(intent_id), IntentKind.PAUSE_WAVE, now(), wave_id=wave, reason=reason)
    (preview if dry_run else submit)(session, intent)


@command(app, "resume")
def resume(
    session: Session,
    *,
    wave: WaveOption,
    reason: ReasonOption = "",
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Lift your own pause. Others' pauses stay in force. A hub queues it for control."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    intent = OperatorIntent(new_intent_id(intent_id), IntentKind.RESUME_WAVE, now(), wave_id=wave, reason=reason)
    (preview if dry_run else submit)(session, intent)


@command(app, "halt")
def halt(
    session: Session,
    *,
    wave: WaveOption,
    reason: ReasonOption,
    intent_id: IntentIdOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Halt a wave for ever: trials roll back, permits are void. There is no resume. Asks first on a terminal."""
    from wavemesh.trust.statements import IntentKind, OperatorIntent

    intent = OperatorIntent(new_intent_id(intent_id), IntentKind.HALT_WAVE, now(), wave_id=wave, reason=reason)
    if dry_run:
        preview(session, intent)
        return
    confirm(session, intent, yes)
    submit(session, intent)


@command(app, "list")
def list_waves(
    session: Session,
    *,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="planned, running, paused, halted or closed; repeatable.")
    ] = None,
    store: Annotated[str, typer.Option("--store", help="Only with devices there.", autocompletion=store_names)] = "",
    release: Annotated[str, typer.Option("--release", help="Only of it.", autocompletion=release_names)] = "",
    cohort: Annotated[str, typer.Option("--cohort", help="Only of it.", autocompletion=cohort_names)] = "",
    limit: LimitOption = DEFAULT_LIMIT,
) -> None:
    """Show waves, newest first. As the node asked knows them; filters narrow."""
    from edgectl.plain import enum_number
    from wavemesh.v1 import operator_pb2, rollout_pb2

    request = operator_pb2.ListWavesRequest(store=store, release=release, cohort=cohort)
    kind = rollout_pb2.WaveState.DESCRIPTOR
    request.states.extend(rollout_pb2.WaveState.ValueType(enum_number(kind, word)) for word in state or ())
    data = session.collect(request, "waves", limit)
    session.show(data, waves_table(data))


@command(app, "show")
@command(app, "status")
def status(session: Session, *, wave: WaveOption) -> None:
    """Show one wave. State, stores, outcomes, what a halt would expose."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetWaveRequest

    request = GetWaveRequest(wave_id=wave)
    data = plain(session.ask(lambda stub: stub.GetWave(request, timeout=CALL_TIMEOUT_S)).wave)
    moved = [(one["store"], each) for one in data["stores"] for each in one["deliveries"]]
    session.show(data, *wave_parts(data), *delivery_parts(moved))


@command(app, "watch")
def watch(session: Session, *, wave: WaveOption) -> None:
    """Show a wave as it changes, until it closes. Live on a terminal, else a line a change; JSON: an object a line."""
    from edgectl.plain import plain
    from edgectl.watching import showing
    from wavemesh.v1.operator_pb2 import WatchWaveRequest

    with showing(session) as show:

        async def follow(stub: OperatorServiceAsyncStub) -> None:
            async for answer in stub.WatchWave(WatchWaveRequest(wave_id=wave)):
                show(plain(answer.wave))

        session.ask(follow)
