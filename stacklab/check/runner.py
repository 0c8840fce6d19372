"""Running the checks of a cloud: all of them, a few at a time, each result recorded as it comes."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from stacklab.blueprint import Blueprint, as_it_stands
from stacklab.check.automatic import check_endpoint, check_units
from stacklab.check.cloud import Cloud
from stacklab.check.commands import check_command
from stacklab.check.junit import write_junit
from stacklab.check.result import Checking, CheckResult, CheckState, Unmet
from stacklab.check.scenarios import check_scenario
from stacklab.check.units import on_node, units_on
from stacklab.errors import CheckFailed, UsageError
from stacklab.journal import Listener
from stacklab.lab.lab import Lab

# Most checks only wait for the cloud, but an `openstack` command is 1.5 s of work for one core. What two of
# them ask of an emulated processor at once takes as long as one after the other, or fails.
WORKERS = 3
WORKERS_EMULATED = 1
LOG_LINES = 15
LOG_SECONDS = 15.0
LOGS_AT_MOST = 3

Job = Callable[[], Checking]
"""One thing to do that gives one result, or several in turn."""


def check_layer(lab: Lab, blueprint: Blueprint, layer: int) -> list[CheckResult]:
    """Run all checks of the services of the layers 1 to `layer`.

    Raises CheckFailed when all are done and any failed, with the last lines of the logs of the services
    concerned; StepFailed when the lab is down.
    """
    results = run_checks(lab, blueprint, layer)
    _raise_for(lab, blueprint, results, again="up")
    return results


def verify(lab: Lab, listener: Listener, junit: Path | None = None) -> list[CheckResult]:
    """Run all checks of the layer that the lab stands on, and tell `listener` each event on the way.

    A lab that stands on none yet, because a check failed in its first `up`, is checked as layer 1. What was
    asked for and is not up yet is for `up` to bring up and to check.
    junit: where to write the results as JUnit XML, whatever they are. Raises like `check_layer`, and
    UsageError for a lab whose first `up` has not come as far as its checks.
    """
    blueprint = as_it_stands(lab)
    layer = blueprint.target
    if not lab.settings.layer and not _was_checked(lab, layer):
        raise UsageError(
            f"lab '{lab.name}' has not come up yet, so there is nothing to check",
            hint=f"stacklab up --lab {lab.name}   (goes on from where it stopped)",
        )
    lab.refuse_lost_images()
    with lab.locked():
        unsubscribe = lab.journal.subscribe(listener)
        try:
            with lab.journal.step(f"layer {layer} checks"):
                began = datetime.now(UTC)
                results = run_checks(lab, blueprint, layer)
                if junit is not None:
                    write_junit(junit, results, lab=lab.name, layers=_layers(blueprint), began=began)
                _raise_for(lab, blueprint, results, again="verify")
        finally:
            unsubscribe()
    return results


def _was_checked(lab: Lab, layer: int) -> bool:
    return any(event.data.get("name") == f"layer {layer} checks" for event in lab.journal.read())


def _layers(blueprint: Blueprint) -> dict[str, int]:
    return {service.name: number for number, cut in enumerate(blueprint.cuts, 1) for service in cut}


def run_checks(lab: Lab, blueprint: Blueprint, layer: int) -> list[CheckResult]:
    """Run all checks and record them; returns the results in the order of the services."""
    cloud = Cloud.of(lab, blueprint, layer)
    order = [service.name for service in cloud.services]

    def record(result: CheckResult) -> None:
        more = {name: value for name, value in (("error", result.error), ("detail", result.detail)) if value}
        lab.journal.record(
            f"stacklab.check.{result.state}", result.service, name=result.name, seconds=result.seconds, **more
        )

    workers = WORKERS if lab.patience == 1.0 else WORKERS_EMULATED
    with lab.namespace.network():
        results = run_jobs(jobs_of(cloud), record, cloud.stopping, workers)
    return sorted(results, key=lambda result: order.index(result.service))


def jobs_of(cloud: Cloud) -> list[Job]:
    """The checks of a cloud: the quick ones first, then what takes longest."""
    units: list[Job] = [partial(check_units, cloud, node) for node in cloud.blueprint.nodes]
    endpoints: list[Job] = []
    scenarios: list[Job] = []
    commands: list[Job] = []
    for service in cloud.services:
        for endpoint in service.identity.services:
            endpoints.append(partial(check_endpoint, cloud, service, endpoint))
        for check in service.checks:
            if check.scenario is not None:
                scenarios.append(partial(check_scenario, cloud, service, check.name, check.scenario))
            elif check.run is not None:
                commands.append(partial(check_command, cloud, service, check.name, check.run))
    return [*units, *endpoints, *scenarios, *commands]


def run_jobs(
    jobs: Sequence[Job],
    record: Callable[[CheckResult], None],
    stopping: threading.Event,
    workers: int = WORKERS,
) -> list[CheckResult]:
    """Run jobs, `workers` at a time, in the calling thread's network; returns their results as they came.

    Ctrl-C sets `stopping`, waits until the running jobs have put away what they made, and goes through.
    """
    results: list[CheckResult] = []

    def work(job: Job) -> None:
        with closing(job()) as checking:
            for result in checking:
                results.append(result)
                record(result)

    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="check")
    try:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # before any worker is free for the next one
        stopping.set()
        raise
    finally:
        pool.shutdown()
    return results


def _raise_for(lab: Lab, blueprint: Blueprint, results: Sequence[CheckResult], *, again: str) -> None:
    failed = [result for result in results if result.state is CheckState.FAILED]
    if failed:
        services = list(dict.fromkeys(result.service for result in failed))
        logs = [_log_of(lab, blueprint, service) for service in services[:LOGS_AT_MOST]]
        raise failure_of(failed, len(results), logs, lab.name, again)


def failure_of(
    failed: Sequence[CheckResult], count: int, logs: Sequence[str], lab: str, again: str = "verify"
) -> CheckFailed:
    """The error that tells of the failed checks among `count`. logs: what to show of the services' logs.

    again: the verb that has them made again.
    """
    first = failed[0]
    if len(failed) == 1:
        message = f"the check '{first.name}' of {first.service} failed: {first.error}"
        told = [first.detail]
    else:
        message = f"{len(failed)} of {count} checks failed"
        told = [_tell(result) for result in failed]
    option = "" if lab == "default" else f" --lab {lab}"
    return CheckFailed(
        message,
        detail="\n\n".join(part for part in (*told, *logs) if part),
        hint=f"stacklab logs{option} {first.service}; when it is mended, stacklab {again}{option}",
    )


def _tell(result: CheckResult) -> str:
    lines = (f"{result.service}, {result.name}: {result.error}", _indent(result.detail))
    return "\n".join(line for line in lines if line)


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _log_of(lab: Lab, blueprint: Blueprint, service: str) -> str:
    """The last lines that the units of a service wrote, from each node that runs any."""
    parts = []
    wanted = [each for each in blueprint.services if each.name == service]
    for node in blueprint.nodes:
        units = [f"--unit={unit}" for units in units_on(wanted, node).values() for unit in units]
        if units:
            argv = ["journalctl", "--no-pager", "--output=short-iso", f"--lines={LOG_LINES}", *units]
            try:
                lines = on_node(lab, node, argv, seconds=LOG_SECONDS).stdout.rstrip()
            except Unmet as error:
                lines = str(error)
            parts.append(f"The last lines of {service} on node '{node.name}':\n{_indent(lines)}")
    return "\n\n".join(parts)
