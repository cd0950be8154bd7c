"""WCAG 2.2 AA on every screen, in both themes and widths, as axe-core finds it."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect

from benchmarks.faults.service import Service
from tests.browser.axe import violations
from tests.browser.dropped import drop
from tests.described_pictures import picture

pytestmark = pytest.mark.browser

SCREENS = (
    *("create", "history", "queue", "models", "compare"),
    *("settings", "settings/keys", "settings/notices", "settings/taste"),
)
WAYS = ("side", "slider", "blink", "difference")
TEXT = "a lighthouse\nSteps: 3, Sampler: Euler, Seed: 3, Size: 128x96, Model: dreamshaper_8, Face: 1"

each_width_and_theme = pytest.mark.parametrize(
    ("width", "theme"), [(width, theme) for width in (1440, 390) for theme in ("light", "dark")]
)


@pytest.fixture(scope="module")
def pictures(fake_server: Service) -> list[str]:
    """The ids of some pictures on the server, for screens that would be empty without. The first has two sets
    that were made from it."""

    def drawn(prompt: str, count: int, **lineage: object) -> list[str]:
        body = {"request": {"prompt": prompt, "num_images": count, "steps": 4}, **lineage}
        answer = httpx.post(
            f"{fake_server.url}/api/v1/jobs", json=body, headers={"prefer": "wait=120"}, timeout=130
        )
        assert answer.json()["ended"]
        return [job["image"]["id"] for job in answer.json()["jobs"]]

    found = drawn("pictures to look at", 4)
    for _ in range(2):
        drawn("one that was made from another", 1, parents=found[:1], relation="variation")
    return found


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that asks for a key."""
    data = tmp_path_factory.mktemp("locked") / "data"
    with Service(data, "--device", "fake", "--log-level", "warning") as running:
        httpx.post(f"{running.url}/api/v1/keys", json={"name": "one"}, timeout=30).raise_for_status()
        yield running


@each_width_and_theme
def test_axe_finds_nothing(studio, axe, pictures, theme, width):
    opened = studio(width=width, theme=theme)
    page = opened.page
    found = []
    for screen in SCREENS:
        opened.open(f"#/{screen}")
        found += [f"{screen}: {one}" for one in violations(page, axe)]
    for way in WAYS:
        opened.open(f"#/compare/{pictures[0]},{pictures[1]}?way={way}")
        expect(page.get_by_role("table")).to_be_visible()
        found += [f"compare, {way}: {one}" for one in violations(page, axe)]
    opened.open(f"#/image/{pictures[0]}")
    expect(page.get_by_role("img", name="pictures to look at")).to_be_visible()
    page.get_by_role("radio", name="Step 2 of 4").check()
    found += [f"image: {one}" for one in violations(page, axe)]
    page.keyboard.press("?")
    found += [f"shortcuts: {one}" for one in violations(page, axe)]
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    found += [f"palette: {one}" for one in violations(page, axe)]
    assert not found, "\n".join(found)


@each_width_and_theme
def test_axe_finds_nothing_on_sheets_and_in_the_mask_editor(studio, axe, pictures, theme, width):
    page = studio(width=width, theme=theme, hash=f"#/image/{pictures[0]}").page
    expect(page.get_by_role("img", name="pictures to look at")).to_be_visible()
    page.keyboard.press("e")
    editor = page.get_by_role("dialog", name="Paint over what is to change")
    expect(editor.get_by_role("application")).to_be_visible()
    found = [f"mask: {one}" for one in violations(page, axe)]
    editor.get_by_role("button", name="Cancel").click()
    expect(editor).to_be_hidden()
    files = [("old.png", "image/png", picture(parameters=TEXT)), ("plain.png", "image/png", picture())]
    sheet = drop(page, *files)
    expect(sheet.get_by_role("region", name="Replaced")).to_be_visible()
    found += [f"import: {one}" for one in violations(page, axe)]
    sheet.get_by_role("list", name="Files").get_by_role("button").nth(1).click()
    expect(sheet.get_by_text("says nothing of how it was made")).to_be_visible()
    found += [f"import of a plain picture: {one}" for one in violations(page, axe)]
    assert not found, "\n".join(found)


@each_width_and_theme
def test_axe_finds_nothing_where_one_signs_in(studio, axe, locked_server, theme, width):
    page = studio(locked_server, width=width, theme=theme, tolerate="401").page
    expect(page.get_by_role("heading", name="Sign in to Limner")).to_be_visible()
    found = violations(page, axe)
    page.get_by_label("Key").fill("no such key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This key is not valid here.")).to_be_visible()
    found += [f"refused: {one}" for one in violations(page, axe)]
    assert not found, "\n".join(found)
