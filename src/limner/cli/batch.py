"""`limner batch`: a folder of images from a file of requests.

Each line is checked against its model before the first image. Then a bounded number of images is in flight in
one engine, enough to keep it full. A journal records which lines are finished, so that the same command
resumes an interrupted batch.
"""

import functools
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.fields import RequestOptions
from limner.cli.lines import Fault, Format, Line, read_lines
from limner.cli.options import (
    OUTPUT,
    ModelOptions,
    Quiet,
    Sign,
    SignPrompt,
    Watermark,
    option,
    spread,
    watermark_key,
)
from limner.cli.output import check_folder
from limner.cli.signing import Signatures
from limner.errors import InvalidPicture, InvalidRequest, LimnerError
from limner.files import numbered

from . import terminal

if TYPE_CHECKING:
    from limner.cli.journal import Journal
    from limner.engine.handle import Handle
    from limner.images.picture import Encode
    from limner.model.model import Model
    from limner.prompts.attention import PromptSyntax
    from limner.request import GenerationRequest

_UNDER_WAY = 256  # images: several times an engine's batch, and few enough to keep in memory

_FILE = (
    "Requests as JSON (lines, a list or objects) or as CSV with a heading of field names, or prompts, one a "
    "line; - reads standard input."
)
_FORMAT = "Format of the file. auto uses its suffix, else its content; with lines each line is a prompt."


@spread
def batch(
    file: Annotated[str, typer.Argument(help=_FILE, show_default=False)],
    *,
    fields: RequestOptions,
    models: ModelOptions,
    format: Annotated[Format, option(_FORMAT, OUTPUT, "--format")] = Format.auto,
    out: Annotated[Path, option("Folder for the images and their journal.", OUTPUT)] = Path("batch"),
    watermark: Watermark = False,
    sign: Sign = False,
    sign_prompt: SignPrompt = False,
    quiet: Quiet = False,
) -> None:
    """Generate images for a file of prompts or requests.

    Options apply to every line that does not say otherwise. All lines are checked before the first image.
    The same command again resumes where it was stopped, and retries lines that failed.
    """
    from limner.cli.journal import Journal

    name = "standard input" if file == "-" else file
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    lines, faults = read_lines(raw, file, format, fields.given())
    if not lines and not faults:
        raise InvalidRequest(f"{name} asks for nothing", hint="write a prompt a line, or see --format")
    check_folder(out)
    key, signing = watermark_key(watermark), Signatures.read(sign, with_prompt=sign_prompt)
    run = _Run(name, lines, Journal(out), sys.stderr.isatty() and not quiet, key, signing)
    if run.finished and not quiet:
        terminal.note(f"{run.finished} of {_lines(len(lines))} done before")
    try:
        asked = len(lines) + len(faults)
        faults += run.check(models)
        _refuse(faults, name, everything=len(faults) == asked > 1)
        run.generate()
    except KeyboardInterrupt:
        terminal.say("stopped", f"{run.finished} of {_lines(len(lines))} done, and kept in {out}", "yellow")
        terminal.say("hint", "the same command goes on with the others", "cyan")
        raise typer.Exit(130) from None
    if run.failed:
        for fault in sorted(run.failed, key=lambda fault: fault.number):
            terminal.say("failed", f"{name}:{fault.number}: {fault.why}", "red")
        terminal.error(
            f"{len(run.failed)} of {_lines(len(lines))} failed", "the same command tries them again"
        )
        raise typer.Exit(1)


def _lines(number: int) -> str:
    return f"{number} line{'s' * (number != 1)}"


def _refuse(faults: Sequence[Fault], name: str, *, everything: bool) -> None:
    """Raises InvalidRequest if there are any, having listed them.

    Args:
        everything: whether they are of all lines.
    """
    if not faults:
        return
    hint = "`limner generate --help` describes the fields"
    if everything and len({fault.why for fault in faults}) == 1:  # as where an option is wrong
        raise InvalidRequest(faults[0].why, hint=hint)
    for fault in sorted(faults, key=lambda fault: fault.number):
        terminal.error(f"{name}:{fault.number}: {fault.why}")
    raise InvalidRequest(f"{_lines(len(faults))} of {name} cannot be generated, so none was", hint=hint)


class _Run:
    """The lines of a file on their way to images.

    Attributes:
        finished: Number of lines that are done, in this run or before.
        failed: lines that failed in this run.
    """

    def __init__(
        self,
        name: str,
        lines: Sequence[Line],
        journal: "Journal",
        visible: bool,
        key: bytes | None,
        signing: Signatures | None,
    ) -> None:
        self._name, self._journal = name, journal
        self._key, self._signing = key, signing  # the key is that of the watermark
        self._bar = terminal.Bar() if visible else None
        todo = [line for line in lines if not journal.has(line)]
        self.finished = len(lines) - len(todo)
        self.failed: list[Fault] = []
        # The lines of one model come one after another, so that no model is loaded twice.
        self._by_model: dict[tuple[str | None, ...], list[Line]] = defaultdict(list)
        for line in todo:
            request = line.request
            self._by_model[request.model, request.revision, request.variant].append(line)
        self._total = sum(line.request.num_images for line in lines)
        self._before = self._total - sum(line.request.num_images for line in todo)  # images
        self._ended = 0  # images of this run
        self._since = 0.0
        self._taken = journal.all_names()
        self._files: dict[str, dict[int, Path]] = defaultdict(dict)  # of lines under way, by fingerprint
        self._errors: dict[str, dict[int, str]] = defaultdict(dict)
        self._encodings: dict[str, Encode] = {}  # of lines that have images to sign, by fingerprint
        self._said = set[str]()

    def check(self, options: ModelOptions) -> list[Fault]:
        """Load the models, and find the lines that they cannot generate.

        Raises:
            LimnerError: the only model cannot be loaded.
        """
        if not self._by_model:
            return []
        faults = list[Fault]()
        with terminal.passing("loading …", self._bar is not None):
            from limner.engine.models import ModelCache

            given = options.given()
            self._models, self._assets = ModelCache(**given), given.get("assets")
            for lines in self._by_model.values():
                try:
                    model = self._models.get(lines[0].request)
                except LimnerError as error:
                    if len(self._by_model) == 1:
                        raise
                    faults += (Fault(line.number, error.message) for line in lines)
                else:
                    faults += _beyond(model, lines, self._journal, marking=self._key is not None)
        return faults

    def generate(self) -> None:
        """Generate the rest, once it is checked.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not self._by_model:
            return
        from limner.engine.engine import Engine

        self._since = time.monotonic()
        ended: SimpleQueue[tuple[Line, int, Path, Handle | None]] = SimpleQueue()
        try:
            with self._journal.open(), Engine(self._models) as engine:
                waiting, under_way = self._pictures(), 0
                while True:
                    for line, index, request in islice(waiting, _UNDER_WAY - under_way):
                        under_way += 1
                        path, is_there = self._place(line, index, request)
                        if is_there:
                            ended.put((line, index, path, None))
                            continue
                        handle = engine.submit(request)
                        handle.when_done(functools.partial(ended.put, (line, index, path, handle)))
                    self._show()
                    if not under_way:
                        return
                    self._end(*ended.get())
                    under_way -= 1
        finally:
            if self._bar:
                self._bar.hide()

    def _pictures(self) -> Iterator[tuple[Line, int, "GenerationRequest"]]:
        """The images to generate, one by one, so that none waits in memory for others of its line."""
        for lines in self._by_model.values():
            for line in lines:
                first = self._journal.seed(line)
                for index in range(line.request.num_images):
                    own = {"seed": first + index, "num_images": 1}
                    yield line, index, line.request.model_copy(update=own)

    def _place(self, line: Line, index: int, request: "GenerationRequest") -> tuple[Path, bool]:
        """The file for an image, and whether it exists already: a run that was killed may have written it
        without having finished its line, or only others of its line were thrown away."""
        if names := self._journal.names(line):
            path = self._journal.folder / names[index]
            return path, path.is_file()
        for path in numbered(self._journal.folder / f"{line.number:05d}-{request.seed}.png"):
            if path.name in self._taken:
                continue
            if not path.exists():
                return path, False
            if _shows(path, self._models.get(request).with_final_prompts(request)):
                return path, True
        raise AssertionError("numbered() ends")

    def _end(self, line: Line, index: int, path: Path, handle: "Handle | None") -> None:
        """Write an image; note its line with the last one."""
        key = line.fingerprint
        files, errors = self._files[key], self._errors[key]
        error = handle.exception() if handle else None
        if error is not None:
            errors[index] = error.message if isinstance(error, LimnerError) else repr(error)
        else:
            files[index] = path = self._write(line, path, handle) if handle else path
            if self._bar and sys.stdout.isatty():
                self._bar.hide()
            typer.echo(os.fsencode(path))
        self._ended += 1
        if len(files) + len(errors) == line.request.num_images:
            self._note(line, [files[i].name for i in sorted(files)], [errors[i] for i in sorted(errors)])
            del self._files[key], self._errors[key]
            self._encodings.pop(key, None)

    def _write(self, line: Line, path: Path, handle: "Handle") -> Path:
        """Write an image; another name is taken where a file has appeared under this one."""
        from limner.images.picture import write_new_picture

        [picture] = handle.result().images
        if self._key is not None:
            from limner.safety.marking import marked

            picture = marked(picture, self._key)
        others = (other for other in numbered(path) if other.name not in self._taken)
        path = write_new_picture(picture, chain([path], others), self._encoding(line))
        for warning in picture.record.warnings:
            if warning not in self._said:
                self._said.add(warning)
                if self._bar:
                    self._bar.hide()
                terminal.warning(f"{self._name}:{line.number}: {warning}")
        return path

    def _encoding(self, line: Line) -> "Encode":
        """What encodes the images of a line. To sign them, its input images are read with the first one."""
        from limner.images.picture import encode

        if self._signing is None:
            return encode
        key = line.fingerprint
        if key not in self._encodings:
            self._encodings[key] = self._signing.encoding(line.request, self._assets)
        return self._encodings[key]

    def _note(self, line: Line, names: Sequence[str], errors: Sequence[str]) -> None:
        from limner.cli.journal import Entry

        entry = Entry(line=line.number, fingerprint=line.fingerprint, seed=self._journal.seed(line))
        if errors:
            self.failed.append(Fault(line.number, errors[0]))
            self._journal.note(entry.model_copy(update={"error": errors[0]}))
        else:
            self.finished += 1
            self._journal.note(entry.model_copy(update={"pictures": tuple(names)}))

    def _show(self) -> None:
        """How many images are done of all, at what pace, and the time left."""
        if not self._bar:
            return
        done, rate = self._before + self._ended, self._ended / (time.monotonic() - self._since)
        pace = "" if not rate else f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"
        left = (self._total - done) / rate if rate else inf
        self._bar.update(done, self._total, f"{done} of {self._total} images", pace, left)
        if done == self._total:
            self._bar.hide()
            if not self.failed:
                terminal.note(f"{self.finished} lines done, {pace}")


def _beyond(model: "Model", lines: Iterable[Line], journal: "Journal", *, marking: bool) -> Iterator[Fault]:
    """The lines that a model cannot generate, or whose images would be too small for the watermark."""
    from limner.prompts.chunks import tokenize_prompt
    from limner.safety.watermark import check_size

    tokenizer = next(iter(model.tokenizers.values()))

    @functools.cache  # a hundred thousand lines tend to have few settings
    def check(settings: "GenerationRequest") -> None:
        resolved = model.resolve(settings).request
        if marking:
            check_size((resolved.width or 0, resolved.height or 0))

    @functools.lru_cache  # and few negative prompts
    def read(text: str, syntax: "PromptSyntax") -> None:
        tokenize_prompt(text, tokenizer, syntax)

    without_words = {"prompt": "", "negative_prompt": "", "styles": (), "wildcards": False}
    for line in lines:
        request = line.request
        try:
            check(request.model_copy(update={**without_words, "seed": 0, "num_images": 1}))
            for index in range(request.num_images if request.wildcards else 1):
                own = model.with_final_prompts(
                    request.model_copy(update={"seed": journal.seed(line) + index})
                )
                model.adapters.used(own.loras)
                for text in own.prompts:
                    read(text, "literal" if own.emphasis == "none" else own.prompt_syntax)
        except LimnerError as error:
            yield Fault(line.number, error.message)


def _shows(path: Path, request: "GenerationRequest") -> bool:
    """Whether a file is the image of a request."""
    from limner.images.metadata import read_record

    try:
        record = read_record(path)
    except InvalidPicture:
        return False
    asked = request.model_dump(exclude_none=True)
    return record is not None and asked.items() <= record.request.model_dump().items()
