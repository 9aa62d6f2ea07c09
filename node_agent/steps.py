"""One short function per step of a run.

A step receives a frozen run and the ports, returns what it reached, and sees nothing else. It may be repeated at any
time, by any later process: "already done" is success. It raises Transient (again later), RunFailed (the ending is known)
or RunClosed (the server has closed the run); anything else is a bug.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from node_agent.company import take_beside_another
from node_agent.domain.claims import claim_time
from node_agent.domain.container import (
    ContainerReport,
    ContainerSpec,
    Phase,
    PinnedImage,
    PullBounds,
    PullPolicy,
    Relaxation,
    run_container_name,
)
from node_agent.domain.database import Database
from node_agent.domain.departures import REMOVED, while_paused, why_taken
from node_agent.domain.gpu import gets_gpus
from node_agent.domain.lifecycle import Advance, StepResult, Wait, status_of
from node_agent.domain.mark import seconds_since
from node_agent.domain.policy import matching_relaxation, parse_image
from node_agent.domain.ports import FinalReport
from node_agent.domain.run import ContainerId, Outcome, Run, State, Status
from node_agent.domain.runlogs import LogSharing
from node_agent.domain.secret import Secret
from node_agent.domain.symptoms import likely_limit
from node_agent.errors import (
    ContainerLost,
    EngineUnreachable,
    ImageMissing,
    InputUnreadable,
    NamespaceLost,
    OutputTooLarge,
    RegistryUnreachable,
    RunClosed,
    TimeLimit,
)
from node_agent.inputs import ensure_input, kept_digest, require_judged_input
from node_agent.runlog import log_of
from node_agent.sealing import learn_reader, seal_result
from node_agent.stepports import Layout, Ports


def admit(run: Run, ports: Ports) -> StepResult:
    """Decide whether the run may run here, and take it."""
    if run.fault:
        raise InputUnreadable(run.fault)
    ports.admission.admit(run)
    ports.databases.choose(run.task.databases)
    if ports.seal is not None:
        learn_reader(run, seal=ports.seal, folders=ports.folders)
    taken = _take(run, ports)
    if isinstance(taken, Wait):
        return taken
    facts = {"claimed_at": taken, "announced": Status.INITIALIZING}
    return Advance(State.ADMITTED, {**facts, "input_digest": kept_digest(run, ports.folders)})


def _take(run: Run, ports: Ports) -> float | Wait:
    if ports.has_company():
        return take_beside_another(run, server=ports.server, clock=ports.clock)
    at = claim_time(run.received_at, now=ports.clock.now())
    ports.server.claim(run.id, at=at)
    return at


def announce(run: Run, ports: Ports) -> StepResult:
    """Tell the server how far the run is; a courtesy."""
    status = status_of(run)
    ports.server.announce(run.id, status)
    return Wait({"announced": status}, seconds=0)


def verify(run: Run, ports: Ports) -> StepResult:
    """Ask the server whether it still wants a run that its list of open runs did not show."""
    if not ports.server.is_open(run.id):
        raise RunClosed(f"Run {run.id} is closed at the server.")
    return Wait({}, seconds=0)


def pull(run: Run, ports: Ports) -> StepResult:
    """Get the input and the image, and pin it; the policy has its last word on the content that will run."""
    input_digest = ensure_input(
        run,
        server=ports.server,
        folders=ports.folders,
        clock=ports.clock,
        wanted=lambda: ports.wanted(run.id),
    )
    ports.tokens.ask(run.id, _asking_for_token(run, ports))
    try:
        image = _image(run, ports)
    except RegistryUnreachable as error:
        if seconds_since(run.entered, now=ports.clock.mark()) < ports.settings.registry_patience:
            raise
        patience = ports.settings.registry_patience
        raise ImageMissing(
            f"{error.message} This node kept asking for {patience:.0f} seconds.",
            hint="Is the registry's name right? If so, try again later or ask the owner of the node.",
        ) from error
    ports.admission.admit_content(run, digest=image.digest)
    facts = {"image_id": image.image_id, "digest": image.digest, "input_digest": input_digest}
    return Advance(State.PULLED, facts)


def _image(run: Run, ports: Ports) -> PinnedImage:
    reference = run.task.image
    local = ports.runtime.find_image(reference)
    if local is not None and _is_enough(local, reference, ports.settings.pull):
        return local
    if ports.settings.pull is PullPolicy.NEVER:
        raise ImageMissing(
            f"The image {reference} is not on this node, and this node never pulls (images.pull: never)."
        )
    pulled = ports.runtime.pull_image(
        reference,
        wanted=lambda: ports.wanted(run.id),
        progress=lambda progress: ports.progress(run.id, progress),
        here=local,
        bounds=PullBounds(
            max_size=ports.settings.max_image_size,
            least_free=ports.settings.min_free_disk,
            free=ports.free_for_images,
        ),
    )
    if pulled.is_new:
        ports.pulled(reference, pulled)
    return pulled


def _is_enough(local: PinnedImage, reference: str, policy: PullPolicy) -> bool:
    image = parse_image(reference)
    exact = image is not None and image.digest is not None and image.digest == local.digest
    # A digest names one content for ever: no registry can know better.
    return exact or policy is not PullPolicy.ALWAYS


def create(run: Run, ports: Ports) -> Advance:
    """Get the token, make the folders ready, create the container."""
    require_judged_input(run, ports.folders)
    databases = ports.databases.choose(run.task.databases)
    relaxation = _relaxation(run, ports)
    token = ports.tokens.take(run.id, _asking_for_token(run, ports))
    laid_out = ports.contract.lay_out(run, ports, databases, token=token, open_to_all=relaxation.image_user)
    container = ports.runtime.ensure_container(_spec(run, ports, databases, laid_out, relaxation))
    return Advance(State.CREATED, {"container": container, "token_hash": hash_token(token.reveal())})


def _spec(
    run: Run, ports: Ports, databases: tuple[Database, ...], laid_out: Layout, relaxation: Relaxation
) -> ContainerSpec:
    return ContainerSpec(
        name=run_container_name(ports.settings.node_name, run.id),
        run_id=run.id,
        image_id=_pinned(run),
        user=None if relaxation.image_user else laid_out.user,
        groups=ports.databases.groups(databases),
        environment=laid_out.environment,
        mounts=laid_out.mounts,
        command=laid_out.command,
        gateway_names=laid_out.gateway_names,
        limits=ports.settings.limits,
        writable_root=relaxation.writable_root,
        capabilities=relaxation.capabilities,
        gpus=gets_gpus(run.task.image, ports.settings.extras.gpu, digest=run.digest),
        hosts=ports.settings.extras.hosts,
        series=series_of(run),
    )


def _asking_for_token(run: Run, ports: Ports) -> Callable[[], Secret]:
    return partial(ports.server.container_token, run.task.id, run.task.image)


def series_of(run: Run) -> str:
    """Name the runs among which a network namespace may be handed on: those of one image for one person; empty: none."""
    whom = (run.task.init_org_id, run.task.init_user_id, run.task.init_user_name)
    is_known = run.task.init_user_id is not None or run.task.init_user_name is not None
    return f"{run.image_id} {whom}" if is_known else ""


def _relaxation(run: Run, ports: Ports) -> Relaxation:
    """Find what the owner gives back to this image, and leave a trace of it in the log."""
    relaxation = matching_relaxation(run.task.image, ports.settings.relaxations)
    if relaxation.image:
        log_of(run).warning(
            "hardening_relaxed",
            rule=relaxation.image,
            image_user=relaxation.image_user,
            writable_root=relaxation.writable_root,
            capabilities=list(relaxation.capabilities),
        )
    return relaxation


def _pinned(run: Run) -> str:
    if run.image_id is None:
        raise ContainerLost("The image of this run was never pinned.")
    return run.image_id


def hash_token(token: str) -> str:
    """Give the form in which a container token is kept: enough to recognise it, useless to a thief."""
    return hashlib.sha256(token.encode()).hexdigest()


def start(run: Run, ports: Ports) -> StepResult:
    """Start the container, unless it ever started; make it again when what it was to join is gone."""
    made: Mapping[str, object] = {}
    try:
        ports.runtime.ensure_started(_container(run))
    except NamespaceLost:
        made = create(run, ports).facts
        ports.runtime.ensure_started(ContainerId(str(made["container"])))
    return Advance(State.RUNNING, {**made, "started_at": ports.clock.now()})


def observe(run: Run, ports: Ports) -> StepResult:
    """Look at the container; when it ended, take its log and its output over."""
    report = ports.runtime.inspect(_container(run))
    if report is None:
        raise ContainerLost(REMOVED)
    if report.phase is Phase.RUNNING:
        _check_limits(run, report, ports)
        return Wait({})
    _capture_log(run, ports)
    ports.contract.capture(run, ports)
    if report.exit_code == _KILLED and not report.out_of_memory:
        # The engine may learn why only after it learned that.
        report = ports.runtime.inspect(report.id) or report
    if taken := why_taken(report):
        raise ContainerLost(taken)
    return Advance(State.CAPTURED, _end_of(report, ports))


def _end_of(report: ContainerReport, ports: Ports) -> Mapping[str, object]:
    return {
        "exit_code": report.exit_code,
        "out_of_memory": report.out_of_memory,
        "started_at": report.started_at or ports.clock.now(),
    }


def _check_limits(run: Run, report: ContainerReport, ports: Ports) -> None:
    running_for = seconds_since(run.entered, now=ports.clock.mark())
    if running_for > ports.settings.run_time:
        raise TimeLimit(
            ports.settings.spoken(
                f"The algorithm was stopped after {running_for:.0f} seconds; "
                f"this node allows {ports.settings.run_time:.0f} (limits.run_time).{while_paused(report)}"
            )
        )
    used = ports.uses.measured(run, ports.folders, pid=report.pid, running_for=running_for).total
    if used > ports.settings.disk_size:
        raise OutputTooLarge(
            ports.settings.spoken(
                f"The algorithm was stopped: it filled {used:,} bytes of disk; "
                f"this node allows {ports.settings.disk_size:,} (limits.output_size and limits.tmp_size)."
            )
        )


def _capture_log(run: Run, ports: Ports) -> None:
    if run.container is None:
        return
    with ports.folders.log_file(run.id) as file:
        ports.runtime.copy_log(
            run.container, file, limit=ports.settings.log_size, mask=ports.settings.log_mask
        )


def filter_(run: Run, ports: Ports) -> StepResult:
    """Say how the run ended, and seal its result where that is wanted, before anything leaves this machine."""
    outcome = _outcome(run)
    facts = {
        "outcome": outcome,
        "reason": ports.settings.spoken(_reason(run, outcome, ports)),
        "finished_at": ports.clock.now(),
    }
    if ports.seal is not None:
        seal_result(run, seal=ports.seal, folders=ports.folders)
    return Advance(State.FINISHED, facts)


def _outcome(run: Run) -> Outcome:
    if run.exit_code == 0:
        return Outcome.COMPLETED
    return Outcome.OUT_OF_MEMORY if run.out_of_memory else Outcome.CRASHED


def _reason(run: Run, outcome: Outcome, ports: Ports) -> str:
    allowed = f"this node allows {ports.settings.limits.memory:,} bytes (limits.memory)"
    if outcome is Outcome.OUT_OF_MEMORY:
        return f"The algorithm ran out of memory and was ended by the engine; {allowed}."
    if run.exit_code == _KILLED:
        # Not every engine tells why; hardly anything else kills from outside.
        return (
            "The algorithm was killed (exit code 137), most likely because it ran out of memory, or because the"
            f" node's engine or machine was stopped under it; {allowed}."
        )
    if outcome is Outcome.CRASHED:
        ended = f"The algorithm ended with exit code {run.exit_code}{_signal_name(run.exit_code)}."
        return ended + likely_limit(
            _end_of_log(run, ports), ports.settings.limits, free_disk=ports.folders.free_bytes()
        )
    if not ports.contract.has_result(run, ports):
        return "The algorithm ended without an error but wrote no output."
    return ""


def _end_of_log(run: Run, ports: Ports) -> str:
    log = ports.folders.final_log(run.id, "")
    if log is None:
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TELLING_BYTES))
        return file.read(_TELLING_BYTES).decode(errors="replace")


_KILLED = 137
_TELLING_BYTES = 4096  # what an algorithm dies of stands at the end
_SIGNALS: Mapping[int, str] = MappingProxyType(
    {
        132: " (illegal instruction)",
        134: " (aborted itself)",
        139: " (segmentation fault)",
        143: " (asked to end)",
        153: " (wrote a file larger than limits.output_size)",
        255: " (its own, or that of an engine that was restarted and did not find it again)",
    }
)


def _signal_name(exit_code: int | None) -> str:
    return _SIGNALS.get(exit_code or 0, "")


def stop(run: Run, ports: Ports) -> StepResult:
    """End the container of a run whose ending is decided, and keep what it said.

    A run that never came to its start ends also while the engine does not answer: it has nothing to say, and what may still
    become of its container is removed after the report.
    """
    ports.tokens.forget(run.id)
    try:
        end_container(run, ports)
    except EngineUnreachable as error:
        if run.state >= State.RUNNING:
            raise
        log_of(run).warning("container_left_behind", reason=str(error))
    if run.ending is Outcome.OUTPUT_TOO_LARGE:
        # the report may have to wait for the server; the disk cannot
        ports.folders.discard_work(run.id)
    if run.state is State.RUNNING and run.ending is not Outcome.CLOSED:
        _capture_log(run, ports)
    return Advance(State.FINISHED, {"outcome": run.ending, "finished_at": ports.clock.now()})


def end_container(run: Run, ports: Ports) -> bool:
    """End the run's container, and return whether there is one; safe beside any step of the run."""
    if run.state < State.PULLED:
        return False  # nothing was ever created
    container = run.container or ports.runtime.find_container(run.id)
    if container is not None:
        ports.runtime.stop(container)
    return container is not None


_WITH_RESULT = frozenset({Outcome.COMPLETED, Outcome.CRASHED, Outcome.OUT_OF_MEMORY})
"""Outcomes that only the filter gives: a result that never passed it stays here."""


def report(run: Run, ports: Ports) -> StepResult:
    """Deliver the one final message; what the server refuses for good is over too.

    A result for the server's blob store goes there first, and where it lies is written down before anything is reported.
    """
    if run.outcome is Outcome.CLOSED:
        return Advance(State.REPORTED, {})
    finished_at = run.finished_at or ports.clock.now()
    sealed = ports.folders.sealed_path(run.id) if run.outcome in _WITH_RESULT else None
    final = FinalReport(
        status=status_of(run),
        result=sealed or _plain_result(run, ports),
        is_sealed=sealed is not None,
        stored_as=run.result_blob,
        log=_shared_log(run, ports),
        started_at=run.claimed_at or finished_at,
        finished_at=finished_at,
        init_org_id=run.task.init_org_id,
    )
    if run.input_blob is not None and run.result_blob is None and final.result is not None:
        blob = ports.server.store_result(run.id, final)
        log_of(run).info("result_stored", blob=blob)
        return Wait({"result_blob": blob}, seconds=0)
    ports.server.report(run.id, final)
    return Advance(State.REPORTED, {"announced": status_of(run)})


def _plain_result(run: Run, ports: Ports) -> Path | None:
    result = ports.folders.result_path(run.id) if run.outcome in _WITH_RESULT else None
    # the readers of a blob store take no blob for an empty result
    nothing = run.input_blob is not None and result is not None and result.stat().st_size == 0
    return None if nothing else result


_NOT_SHARED: Mapping[LogSharing, str] = MappingProxyType(
    {
        LogSharing.OFF: "[node] This node does not share the logs of algorithms.\n",
        LogSharing.ERRORS: "[node] This node shares the log of an algorithm only when it fails.\n",
    }
)


def _shared_log(run: Run, ports: Ports) -> Path | None:
    """Give the log as far as the owner shares it; the node's own words are always told."""
    sharing = ports.settings.log_sharing
    failed = run.outcome is not Outcome.COMPLETED
    if sharing is LogSharing.FULL or (sharing is LogSharing.ERRORS and failed):
        return ports.folders.final_log(run.id, _note(run))
    return ports.folders.final_note(run.id, _note(run) + _NOT_SHARED[sharing])


def _note(run: Run) -> str:
    return f"[node] {run.reason}\n" if run.reason else ""


def remove(run: Run, ports: Ports) -> StepResult:
    """Leave nothing of the run behind."""
    container = run.container or ports.runtime.find_container(run.id)
    if container is not None:
        ports.runtime.remove(container)
    ports.folders.retire(run.id)
    return Advance(State.REMOVED, {})


def _container(run: Run) -> ContainerId:
    if run.container is None:
        raise ContainerLost("The container of this run is not known.")
    return run.container


Step = Callable[[Run, Ports], StepResult]

STEP_FUNCTIONS: Mapping[str, Step] = MappingProxyType(
    {
        "admit": admit,
        "announce": announce,
        "verify": verify,
        "pull": pull,
        "create": create,
        "start": start,
        "observe": observe,
        "filter": filter_,
        "stop": stop,
        "report": report,
        "remove": remove,
    }
)
