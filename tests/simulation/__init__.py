"""A mesh in one process under a virtual clock: nights of one region, by seed (docs/simulation.md, ADR 22).

    engine.py    virtual time, nodes that live and crash, the trace
    words.py     statements as values: stands in for signatures and the codec, and for nothing else
    disk.py      what survives: a hub's database, a device's state document; commits are where a crash may fall
    links.py     links, and the two ends of a session around the product's machines; briefs.py: frames in a few words
    parents.py   what nodes with children have in common; hubs.py: store hubs and super hubs, of the product's parts
    controls.py  control: its pure rules, with the SQL around them mirrored; rows.py: what it keeps
    devices.py   the agent: the product's update machine, sink and store; activities.py: clearance, trial; board.py
    region.py    who takes part in a night, and which waves are planned
    kinds.py     ``Fault``: every kind with what it does; faults.py does them
    tales.py     stories that happen in every night that is asked for them
    facts.py     ground truth; checkers.py: the invariants over it; checks_of_words.py: those of words on their way
    run.py       ``run_seed``

For mutants. ``run_seed(seed, patches=[...])`` enters each patch (a context manager, ``unittest.mock.patch.object`` for
instance) around the night and returns the violated invariants; an exception counts as one ("code: ..."). The nodes run
the product's classes, so a mutant patches the product where the rule is:

* the cursor's transaction          ``wavemesh.session.sqlite.SqliteCursors.advance``
* removals, versions                ``wavemesh.session.sqlite.SqliteResources.store``, ``wavemesh.session.lanes``
* acknowledge before persist        ``wavemesh.session.upstream.SessionUpstream.perform``, ``.feed`` (the sent mark),
                                    ``wavemesh.session.downstream._Session.perform``, ``ParentMachine.reports_applied``
* incarnations, fencing             ``SqliteReportLog.restart``, ``ChildMachine._restart``, ``ParentMachine.admitted``
* leases, slots, silence            ``storehub.swaps`` (``_is_over``, ``_judge``, ``has_witness``, ``_has_settled``),
                                    ``storehub.scheduler.Scheduler._persist``
* standing, pauses, halts           ``storehub.standing.standing_of``, ``storehub.intents.Intents``
* merge, roll-up                    ``storehub.store.supersedes``, ``superhub.intake.news``, ``control.ledger.beats``
                                    (patch ``tests.simulation.controls.beats``), ``wavemesh.outcomes.Rank``
* replay of old words               ``storehub.belief.Belief._newer_order``, ``superhub.acceptance.Acceptance``,
                                    ``device.sink.DeviceSink._check_floors``
* permits, halts, write-off         ``control.permits.to_issue`` and its like, ``Control.hub_snapshot``,
                                    ``Control._halt``, ``Control._withdraw_permits`` in ``controls.py``
* the device                        ``device.update.TRANSITIONS`` (``patch.dict``), ``device.recovery.STARTS``,
                                    ``device.store.DeviceStore.persist``, ``device.clearance.Clearance._check_leave``,
                                    ``._check_fresh``, ``device.trial.Trial.heard``, ``device.orders._check_release``

A name that a module imported is patched in that module. Order of persisting and sending is interceptable in
``disk.HubTransaction.__aexit__`` and ``disk.DeviceFile.commit`` (when something is durable), in
``links.Stream._read_child`` and ``_read_parent`` (effects in order), and in ``links.Link.send``. ``words.patched``
replaces only what ``_STAND_INS`` names.
"""
