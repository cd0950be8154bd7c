"""Files that are dropped onto the studio."""

import base64

from playwright.sync_api import JSHandle, Locator, Page, expect

_TRANSFER = """files => {
  const transfer = new DataTransfer()
  for (const [name, type, content] of files) {
    const bytes = Uint8Array.from(atob(content), (char) => char.charCodeAt(0))
    transfer.items.add(new File([bytes], name, {type}))
  }
  return transfer
}"""


def transfer(page: Page, *files: tuple[str, str, bytes]) -> JSHandle:
    """A `DataTransfer` of files: name, media type, bytes."""
    encoded = [(name, kind, base64.b64encode(data).decode()) for name, kind, data in files]
    return page.evaluate_handle(_TRANSFER, encoded)


def drop(page: Page, *files: tuple[str, str, bytes]) -> Locator:
    """Drop files (name, media type, bytes) onto the page. Returns the sheet."""
    carried = transfer(page, *files)
    page.dispatch_event("main", "dragenter", {"dataTransfer": carried})
    expect(page.get_by_role("heading", name="Drop to read how it was made")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": carried})
    sheet = page.get_by_role("dialog", name="What this picture says")
    expect(sheet).to_be_visible()
    return sheet
