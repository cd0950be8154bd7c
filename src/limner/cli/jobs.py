"""`limner jobs`: the jobs in the ledger of the service."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from limner.errors import LimnerError, NotFound
from limner.service.jobs import Attempt, Job, JobError, JobState

from . import terminal
from .moments import amount, when
from .opening import AccountOption, DataOption, JsonOption, open_ledger

if TYPE_CHECKING:
    from limner.service.ledger.ledger import Ledger

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="List, show and change the jobs of limner serve."
)

StateName = StrEnum("StateName", {state: state for state in get_args(JobState)})  # type: ignore[misc]
Ids = Annotated[list[str], typer.Argument(help="Ids of jobs or of sets of jobs.", metavar="ID ...")]


@app.command("list")
def list_jobs(
    account: AccountOption = None,
    state: Annotated[
        list[StateName] | None, typer.Option(help="List jobs in this state only. May be repeated.")
    ] = None,
    set_id: Annotated[
        str | None, typer.Option("--set", help="List the jobs of this set only.", metavar="SET")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of jobs to list at most.", min=1, max=10_000)] = 50,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """List jobs, the newest first, and how many wait and run."""
    with open_ledger(data) as ledger:
        states = [cast(JobState, one.value) for one in state or ()]
        found = ledger.list_jobs(account, states=states, set_id=set_id, limit=count)
        load = ledger.load()
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in found], indent=2))
        return
    if found:
        rows = [
            (
                job.id,
                job.state,
                job.account_id,
                job.lane,
                when(job.created_at),
                amount(job.device_seconds),
                job.model,
                str(job.params.get("prompt", ""))[:60],
            )
            for job in found
        ]
        headings = ("job", "state", "account", "lane", "created", "device s", "model", "prompt")
        terminal.columns(rows, headings)
    waiting = ", ".join(f"{number} {lane}" for lane, number in sorted(load.waiting.items())) or "none"
    terminal.note(f"{len(found)} listed; waiting: {waiting}; running: {load.running}")


@app.command()
def show(ids: Ids, as_json: JsonOption = False, data: DataOption = None) -> None:
    """Show jobs with their requests, attempts and errors."""
    with open_ledger(data) as ledger:
        found = [
            (job, ledger.attempts(job.id), ledger.place(job.id))
            for job_id in _jobs(ledger, ids)
            for job in [ledger.get_job(job_id)]
        ]
    if as_json:
        typer.echo(
            json.dumps(
                [asdict(job) | {"attempts": [asdict(a) for a in its]} for job, its, _ in found], indent=2
            )
        )
        return
    for index, (job, its, place) in enumerate(found):
        if index:
            typer.echo("")
        terminal.columns(list(_described(job, its, place).items()))


@app.command()
def cancel(ids: Ids, data: DataOption = None) -> None:
    """Cancel jobs: those that wait at once, those that run within a few seconds."""
    _change(ids, data, "cancel")


@app.command()
def pause(ids: Ids, data: DataOption = None) -> None:
    """Have waiting jobs wait until they are resumed."""
    _change(ids, data, "pause")


@app.command()
def resume(ids: Ids, data: DataOption = None) -> None:
    """Let paused jobs wait for a worker again."""
    _change(ids, data, "resume")


@app.command()
def retry(ids: Ids, data: DataOption = None) -> None:
    """Queue jobs again that failed, are dead or were cancelled. Of a set, those that did."""
    with open_ledger(data) as ledger:
        for job_id in _jobs(ledger, ids):
            if job_id not in ids and ledger.get_job(job_id).state not in ("failed", "dead", "cancelled"):
                continue
            ledger.retry(account_id=None, job_id=job_id)
            terminal.note(f"{job_id} is queued again")


def _change(ids: list[str], data: Any, act: str) -> None:
    with open_ledger(data) as ledger:
        wanted = _jobs(ledger, ids)
        affected = getattr(ledger, act)(account_id=None, job_ids=wanted)
        states = Counter(ledger.get_job(job_id).state for job_id in wanted)
    now = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    terminal.note(f"{len(affected)} of {len(wanted)} jobs affected; now {now}")


def _jobs(ledger: "Ledger", ids: list[str]) -> list[str]:
    """Ids of the jobs that ids of jobs and sets name."""
    found: dict[str, None] = {}
    for one in ids:
        try:
            found |= dict.fromkeys(job.id for job in ledger.get_set(one).jobs)
        except NotFound:
            try:
                found[ledger.get_job(one).id] = None
            except NotFound:
                raise _unknown(one) from None
    return list(found)


def _unknown(one: str) -> LimnerError:
    return NotFound(f"no job and no set {one}", hint="`limner jobs list` shows their ids")


def _described(job: Job, its: list[Attempt], place: int) -> Mapping[str, str]:
    """What `show` prints of a job, by its label."""
    shown = {
        "job": f"{job.id} ({job.kind}, image {job.index + 1} of {job.set_id})",
        "state": job.state + (f", {place} before it" if job.state == "queued" else ""),
        "account": job.account_id + (f", key {job.key_id}" if job.key_id else ""),
        "lane": job.lane,
        "model": job.model,
        "created": when(job.created_at),
        "started": when(job.started_at),
        "finished": when(job.finished_at),
        "deadline": when(job.deadline_at),
        "device seconds": amount(job.device_seconds, 3),
        "predicted": amount(job.predicted_seconds, 3),
        "cost": amount(job.cost, 6),
        "image": "" if job.image is None else f"{job.image.id} ({job.image.width} x {job.image.height})",
        "file": "" if job.image is None else job.image.key,
        "error": _fault(job.error),
    }
    for attempt in its:
        ended = f"{when(attempt.ended_at)} {attempt.outcome}" if attempt.ended_at else "it runs"
        fault = f": {_fault(attempt.error)}" if attempt.error else ""
        shown[f"attempt {attempt.fence}"] = f"{attempt.worker}, {when(attempt.started_at)} - {ended}{fault}"
    shown["request"] = json.dumps(job.params, ensure_ascii=False)
    return {label: text for label, text in shown.items() if text}


def _fault(error: JobError | None) -> str:
    if error is None:
        return ""
    return f"{error.code}: {error.message}" + (f" ({error.hint})" if error.hint else "")
