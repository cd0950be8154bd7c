"""`limner audit`: the audit log of a service, its proofs and its checks.

Exit codes: 1 the log is not what was signed, 2 an error such as a proof that does not hold.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.errors import InvalidRequest, NotFound
from limner.files import whole_file

from . import terminal
from .moments import when
from .opening import DataOption, JsonOption, open_ledger, service_settings

if TYPE_CHECKING:
    from limner.service.audit.checking import Checked
    from limner.service.audit.notes import Checkpoint, PublicKey
    from limner.service.audit.sequencer import AuditLog
    from limner.service.ledger.auditing import AuditRow
    from limner.service.ledger.ledger import Ledger

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Show, verify and export the audit log of a service, and prove what is in it.",
)

_EXPORT = "limner-audit-log-1"
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="Public key that signatures must be of, as `limner audit key` prints it. May be repeated.",
    ),
]
NameArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id of an image, a job, a set or an account, or number of an entry."),
]

OutOption = Annotated[
    Path | None, typer.Option("--out", help="File to write. Default: standard output.", metavar="FILE")
]


@app.command("list")
def list_entries(
    subject: Annotated[
        str | None, typer.Option(help="List what was done to the object of this id.", metavar="ID")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="List what this account or worker did.")] = None,
    action: Annotated[
        str | None, typer.Option(help="List entries of this action only, such as job.done.")
    ] = None,
    after: Annotated[int, typer.Option(help="List entries after this number.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Number of entries to list at most.", min=1)] = 50,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """List entries, the oldest first."""
    with open_ledger(data) as ledger:
        found = ledger.audit_log(after=after, subject=subject, actor=actor, action=action, limit=count)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    if found:
        headings = ("entry", "leaf", "time", "actor", "action", "subject", "details")
        terminal.columns([_line(one) for one in found], headings)
    if len(found) == count:
        terminal.note(f"the first {count}; the next ones: --after {found[-1].id}")


@app.command()
def show(
    name: NameArgument,
    prompts: Annotated[
        bool,
        typer.Option("--prompts", help="Decrypt its prompts, which is written into the log as well."),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Say whether a prompt is one of its own, also where only hashes of them are kept.",
            metavar="TEXT",
        ),
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show an entry: how an image was made, a job ended or a set was accepted, else the last about an id."""
    with _open_log(data) as (ledger, log):
        log.sequence()
        found = ledger.find_audit_entry(name)
        shown: dict[str, Any] = asdict(found)
        if prompts:
            if (read := log.prompts_of(str(found.id))) is None:
                raise _no_prompts(found.id)
            shown["prompts"] = read
            ledger.audit("cli", "prompts.read", found.subject, entry=found.id)
            log.sequence()
        if compare is not None:
            if (same := log.fields_with(str(found.id), compare)) is None:
                raise _no_prompts(found.id)
            shown["compared"] = list(same)
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
        return
    texts = {"entry": str(found.id), "leaf": str(found.leaf), "time": when(found.at)}
    texts |= {"actor": found.actor, "action": found.action, "subject": found.subject}
    texts |= {name: _written(shown[name]) for name in ("details", "prompts") if name in shown}
    if compare is not None:
        texts["compared"] = f"it is {', '.join(shown['compared'])}" if shown["compared"] else "another prompt"
    terminal.columns(list(texts.items()))


@app.command()
def verify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE ...]",
            help="Proofs, exported logs or checkpoints. Proofs and exports are checked by themselves, and "
            "checkpoints against the ledger. Default: the whole log of the ledger.",
        ),
    ] = None,
    key: KeyOption = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="File of an image whose making a proof must be of.", metavar="FILE"),
    ] = None,
    data: DataOption = None,
) -> None:
    """Check a proof, an exported log, or the log of the ledger: every leaf, the order, every checkpoint."""
    from limner.service.audit.notes import PublicKey

    keys = [PublicKey.parse(one) for one in key or ()]
    notes, sound = [], True
    for path in files or ():
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
            if first.startswith(f'{{"format": "{_EXPORT}"'):
                sound &= _verify_export(path, first, file, keys)
            elif first.startswith("{"):
                _verify_proof(path, first + file.read(), keys, picture)
            else:
                notes.append((path, first + file.read()))
    if notes or not files:
        sound &= _verify_ledger(notes, keys, data)
    if not sound:
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: audit.jsonl.", metavar="FILE")
    ] = None,
    data: DataOption = None,
) -> None:
    """Write the whole log as JSON lines, with its checkpoints: `limner audit verify FILE` checks it anywhere.

    Accounts stand in it by their aliases, and prompts hashed or encrypted.
    """
    from limner.service.audit.checking import kept_notes
    from limner.service.audit.notes import Checkpoint

    target = out or Path("audit.jsonl")
    count = 0
    with _open_log(data) as (ledger, log):
        log.sequence()
        size = ledger.audit_size()
        with whole_file(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            keys = [str(one) for one in ledger.audit_signers()]
            file.write(json.dumps({"format": _EXPORT, "size": size, "keys": keys}) + "\n")
            for note in kept_notes(ledger):
                if Checkpoint.parse(note).size <= size:
                    file.write(json.dumps({"checkpoint": note}, ensure_ascii=False) + "\n")
            for leaf in ledger.audit_leaves(end=size):
                row = {"leaf": leaf.number, "entry": leaf.entry}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    terminal.note(f"{count} entries")
    typer.echo(str(target))


@app.command()
def prove(
    name: NameArgument,
    out: OutOption = None,
    data: DataOption = None,
) -> None:
    """Prove that an entry is in the log, without showing any other.

    Of an image this is how it was made, of a job how it ended. The proof is a JSON document that
    `limner audit verify FILE` checks anywhere.
    """
    with _open_log(data) as (_, log):
        document = log.prove(name)
    _write(_document(document), out)


@app.command()
def checkpoint(
    since: Annotated[
        Path | None,
        typer.Option(help="Write the proof that the log continues this checkpoint.", metavar="FILE"),
    ] = None,
    out: OutOption = None,
    data: DataOption = None,
) -> None:
    """Write a signed checkpoint of all entries that there are."""
    with _open_log(data) as (_, log):
        if since is None:
            text = log.checkpoint()
        else:
            text = _document(log.prove_consistency(since.read_text(encoding="utf-8")))
    _write(text, out)


@app.command()
def key(
    new: Annotated[
        bool,
        typer.Option(
            "--new",
            help="Make a new key first. The log goes on with it; prompts sealed before stay unreadable.",
        ),
    ] = False,
    data: DataOption = None,
) -> None:
    """Print the public keys of the log, the newest last. Give the last one to whoever is to check proofs."""
    from limner.service.audit.sequencer import AuditLog

    with open_ledger(data) as ledger:
        settings = service_settings(data)
        if new:
            AuditLog.with_new_key(ledger, settings, actor="cli")
            terminal.note("a new key is made; start the service again")
        else:
            AuditLog(ledger, settings)
        for one in ledger.audit_signers():
            typer.echo(str(one))


def _document(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _write(text: str, out: Path | None) -> None:
    """Write to a file and print its path, or write to standard output."""
    if out is None:
        typer.echo(text, nl=False)
        return
    with whole_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(str(out))


@contextmanager
def _open_log(data: Path | None) -> "Iterator[tuple[Ledger, AuditLog]]":
    from limner.service.audit.sequencer import AuditLog

    with open_ledger(data) as ledger:
        yield ledger, AuditLog(ledger, service_settings(data))


def _no_prompts(entry_id: int) -> NotFound:
    return NotFound(
        f"entry {entry_id} has no prompts that can be read or compared",
        hint="entries of the actions set.accepted and request.refused have them, unless `prompt_log` was "
        "none or they were erased",
    )


def _line(row: "AuditRow") -> tuple[str, ...]:
    leaf = "" if row.leaf is None else str(row.leaf)
    return (str(row.id), leaf, when(row.at), row.actor, row.action, row.subject, _written(row.details))


def _written(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


def _verify_proof(path: Path, text: str, keys: "list[PublicKey]", picture: Path | None) -> None:
    from hashlib import sha256

    from limner.service.audit.proofs import check_document

    found = check_document(text, keys)
    state = f"{found.checkpoint.origin}, {found.checkpoint.size} entries"
    if found.old is not None:
        typer.echo(f"{path}: holds: the log of {found.old.size} entries goes on in {state}")
    else:
        assert found.entry is not None
        if picture is not None:
            digest = sha256(picture.read_bytes()).hexdigest()
            known = [found.entry["details"].get(name) for name in ("sha256", "delivered_sha256")]
            if digest not in known:
                raise InvalidRequest(
                    f"the proof is not of {picture}",
                    hint="it must be the PNG that GET /api/v1/images/ID/file returns, bit for bit; of a copy "
                    "`limner detect` finds the watermark, which stands in the entry",
                )
        typer.echo(f"{path}: holds: entry {found.entry['id']} is leaf {found.leaf} of {state}")
        typer.echo(f"  {when(found.entry['at'])} {found.entry['action']} {found.entry['subject']}")
    if not keys:
        terminal.note(
            f"signed with the key that the file names; compare it with that of the log: {found.key}"
        )


def _verify_export(path: Path, first: str, lines: "Iterable[str]", keys: "list[PublicKey]") -> bool:
    from limner.service.audit.checking import Checking
    from limner.service.audit.notes import PublicKey, open_checkpoint

    checkpoints: list[Checkpoint] = []
    checking: Checking | None = None
    try:
        used = keys or [PublicKey.parse(one) for one in json.loads(first)["keys"]]
        for line in lines:
            row = json.loads(line)
            if checking is None and "checkpoint" in row:
                checkpoints.append(open_checkpoint(row["checkpoint"], used))
                continue
            checking = checking or Checking(checkpoints)
            checking.leaf(row["leaf"], row["entry"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"{path} is no exported log: {type(error).__name__}: {error}") from None
    if not keys:
        terminal.note(f"signed with the key that the file names; compare it with that of the log: {used[-1]}")
    return _told(str(path), (checking or Checking(checkpoints)).done())


def _verify_ledger(notes: "list[tuple[Path, str]]", keys: "list[PublicKey]", data: Path | None) -> bool:
    from limner.service.audit.checking import check_ledger
    from limner.service.audit.notes import open_checkpoint

    with open_ledger(data) as ledger:
        if not (signers := keys or _trusted(ledger, data)):
            terminal.note("the log was never signed: there is nothing to check")
            return True
        others = []
        for path, text in notes:
            try:
                others.append(open_checkpoint(text, signers))
            except InvalidRequest as error:
                raise InvalidRequest(f"{path}: {error.message}", hint=error.hint) from None
        return _told(ledger.url, check_ledger(ledger, signers, others))


def _trusted(ledger: "Ledger", data: Path | None) -> "list[PublicKey]":
    """The keys of the ledger, if the newest is that of the data folder. Raises InvalidRequest."""
    from limner.service.audit.sequencer import AuditLog

    if not ledger.audit_signers():
        return []
    AuditLog(ledger, service_settings(data)).sequence()
    return ledger.audit_signers()


def _told(name: str, found: "Checked") -> bool:
    """Print what was found. Returns whether the log is whole."""
    for fault in found.faults:
        typer.echo(f"{name}: {fault}")
    if not found.faults:
        typer.echo(f"{name}: whole: {found.size} entries, {found.checkpoints} checkpoints")
        if found.size > found.signed:
            terminal.note(f"no checkpoint covers the last {found.size - found.signed} entries yet")
    return not found.faults
