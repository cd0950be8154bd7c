"""WCAG 2.2 AA on every screen, in both themes and widths, as axe-core finds it."""

import httpx
import pytest
from playwright.sync_api import expect

from benchmarks.faults.service import Service
from tests.browser.axe import violations

pytestmark = pytest.mark.browser

SCREENS = ("create", "history", "queue", "models", "settings", "settings/keys", "settings/notices", "compare")


@pytest.fixture(scope="module")
def picture(fake_server: Service) -> str:
    """The id of one of some pictures on the server, for screens that would be empty without."""
    body = {"request": {"prompt": "pictures to look at", "num_images": 4, "steps": 2}}
    answer = httpx.post(
        f"{fake_server.url}/api/v1/jobs", json=body, headers={"prefer": "wait=120"}, timeout=130
    )
    assert answer.json()["ended"]
    return str(answer.json()["jobs"][0]["image"]["id"])


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(studio, axe, picture, theme, width):
    opened = studio(width=width, theme=theme)
    found = []
    for screen in SCREENS:
        opened.open(f"#/{screen}")
        found += [f"{screen}: {one}" for one in violations(opened.page, axe)]
    opened.open(f"#/image/{picture}")
    expect(opened.page.get_by_role("img", name="pictures to look at")).to_be_visible()
    found += [f"image: {one}" for one in violations(opened.page, axe)]
    opened.page.keyboard.press("?")
    found += [f"shortcuts: {one}" for one in violations(opened.page, axe)]
    opened.page.keyboard.press("Escape")
    opened.page.keyboard.press("Control+k")
    found += [f"palette: {one}" for one in violations(opened.page, axe)]
    assert not found, "\n".join(found)
