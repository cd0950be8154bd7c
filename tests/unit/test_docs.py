"""What the documentation says is there: commands and options, links, the set-up."""

import re
import shlex
from pathlib import Path

import pytest

from limner.catalogue.shipped import SHIPPED
from limner.cli.main import group
from limner.request.describe import reference

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "limner"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CALL = re.compile(r"""(?:^|\s|/)(limner (?:"[^"]*"|'[^']*'|[^|&;"'])+)""")
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")


def commands(page: Path) -> list[str]:
    """The lines of indented and fenced blocks that call `limner`, with their continuations."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += [
        line
        for block in re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    return [match[1] for line in lines if (match := CALL.search(line))]


CALLS = [(page.relative_to(ROOT), call) for page in PAGES for call in commands(page)]


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_commands_and_their_options_exist(page, call):
    command, name = group, "limner"
    arguments = shlex.split(call, comments=True)[1:]
    # A group such as `limner models` does something by itself.
    while hasattr(command, "commands") and (arguments[:1] and arguments[0] in command.commands):
        name, *arguments = arguments
        command = getattr(command.commands[name], "loaded", command.commands[name])
    command.make_context(name, arguments)  # parses, and raises for what is not there


def test_commands_are_found():
    """A guard of this file."""
    assert len(CALLS) > 20
    assert any(call.startswith("limner generate --from") for _, call in CALLS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    if not (SHIPPED["picturebook"] / "model_index.json").is_file():
        targets = [target for target in targets if not target.endswith((".png", "picturebook-report.md"))]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_page_is_in_the_index():
    linked = {
        (ROOT / "docs" / target).resolve() for target in LINK.findall((ROOT / "docs/README.md").read_text())
    }
    assert {page for page in PAGES if page.parent.name in ("guides", "concepts", "reference")} <= linked


@pytest.mark.parametrize("page", ["docs/concepts/how-it-works.md", "CONTRIBUTING.md"])
def test_files_that_readers_of_the_code_are_sent_to_exist(page):
    named = re.findall(r"`((?:\.?\w+/)+(?:[\w-]+\.\w+)?)`", (ROOT / page).read_text(encoding="utf-8"))
    assert len(named) > 15
    assert not [path for path in named if not any((root / path).exists() for root in (ROOT, SOURCE))]


def test_ci_sets_up_as_the_readme_says():
    script = (ROOT / ".ci/run").read_text().splitlines()
    [line] = [line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith("-m pytest")]
    set_up, _, tests = line.strip().rpartition(" && ")
    assert set_up in script
    assert [line.removesuffix(" ||") for line in script].count(tests) == 1


def test_the_reference_of_requests_is_that_of_the_schema():
    assert (ROOT / "docs/reference/request.md").read_text(encoding="utf-8") == reference()
