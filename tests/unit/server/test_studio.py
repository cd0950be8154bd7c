"""The studio's files: where they are, how long they may be kept, and what the page may load."""

import gzip
import hashlib
import re
from base64 import b64encode
from pathlib import Path

import pytest

from limner.server.studio import StudioBundle
from limner.studio import DIST
from tests.serving import serving

STYLE = "body{margin:0}"
PAGE = f"""<!doctype html><html><head><style>{STYLE}</style>
<link rel="icon" href="./favicon.svg"><link rel="modulepreload" href="./assets/part.js">
<script type="module" src="./assets/main.js"></script></head><body><!-- {"x" * 600} --></body></html>"""
FILES = {
    "index.html": PAGE,
    "favicon.svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
    "manifest.webmanifest": '{"name": "Limner"}',
    "assets/main.js": "import './part.js';" + "// long\n" * 200,
    "assets/part.js": "export {};",
    "SOURCES.sha256": "abc  web/package.json",
}


def bundle(folder: Path, **changed: str) -> Path:
    """A folder with a bundle. Names of changed files have `_` for `/`."""
    names = {name.replace("_", "/"): text for name, text in changed.items()}
    for name, text in {**FILES, **names}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    with serving(folder / "data", working=False, bundle=bundle(folder / "dist")) as served:
        yield served.client


def addresses(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="([^"]*assets/[^"]*)"', page)


def test_what_the_page_loads_is_kept_for_ever_and_the_page_asked_for_again(client):
    page = client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    part, main = addresses(page.text)
    assert re.fullmatch(r"/assets/[0-9a-f]{16}/main.js", main)
    assert part.rpartition("/")[0] == main.rpartition("/")[0]
    answer = client.get(main)
    assert answer.text == FILES["assets/main.js"]
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert client.head(main).headers["content-length"] == answer.headers["content-length"]


def test_text_is_compressed_for_those_who_take_it(client):
    [_, main] = addresses(client.get("/").text)
    plain = client.get(main, headers={"accept-encoding": "gzip;q=0, br"})
    assert "content-encoding" not in plain.headers
    with client.stream("GET", main, headers={"accept-encoding": "br, gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert len(raw) == int(answer.headers["content-length"]) < len(plain.content) / 5
    assert gzip.decompress(raw) == plain.content
    assert plain.headers["vary"] == answer.headers["vary"] == "Accept-Encoding"
    assert plain.headers["etag"] != answer.headers["etag"]


def test_the_page_may_load_its_own_files_and_run_no_inline_script(client):
    headers = client.get("/").headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    digest = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["style-src"] == f"'self' 'sha256-{digest}'"
    assert policy["img-src"] == "'self' blob: data:"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/SOURCES.sha256", "/index.html", "/assets/main.js", "/assets/0/main.js", "/prompt", "/queue"]
)
def test_nothing_else_is_at_the_root(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("within", ["../index.html", "%2e%2e/index.html", "../../data/keys/signing.key", ""])
def test_only_files_of_the_bundle_are_assets(client, within):
    base = addresses(client.get("/").text)[0].rpartition("/")[0]
    assert client.get(f"{base}/{within}").status_code == 404


def test_icons_and_the_manifest_are_at_the_root(client):
    icon, manifest = client.get("/favicon.svg"), client.get("/manifest.webmanifest")
    assert icon.headers["content-type"] == "image/svg+xml"
    assert manifest.json() == {"name": "Limner"}
    assert manifest.headers["cache-control"] == "no-cache"


def test_files_of_two_versions_are_never_mixed(client, tmp_path):
    old = addresses(client.get("/").text)
    changed = bundle(tmp_path / "dist", **{"assets_part.js": "export const a = 1;"})
    with serving(tmp_path / "data", working=False, bundle=changed) as served:
        page = served.client.get("/")
        assert not set(old) & set(addresses(page.text))
        stale = served.client.get(old[0])
        assert (stale.status_code, stale.headers["cache-control"]) == (404, "no-store")
        assert served.client.get(addresses(page.text)[0]).text == "export const a = 1;"


def test_what_a_bundle_was_built_from_does_not_change_its_addresses():
    files = {name: text.encode() for name, text in FILES.items()}
    other = StudioBundle({**files, "SOURCES.sha256": b"other"})
    assert other.digest == StudioBundle(files).digest


def test_without_a_bundle_a_page_says_so(tmp_path):
    with serving(tmp_path, working=False, bundle=tmp_path / "nothing") as served:
        answer = served.client.get("/")
        assert answer.status_code == 404
        assert "The studio is not installed" in answer.text
        assert served.client.get("/assets/0/main.js").status_code == 404
        assert served.client.get("/api/v1/models").status_code == 200


def test_the_studio_can_be_switched_off(tmp_path):
    with serving(tmp_path, working=False, bundle=bundle(tmp_path / "dist"), studio=False) as served:
        assert served.client.get("/").json()["code"] == "not_found"
        assert served.client.get("/favicon.svg").status_code == 404


@pytest.mark.skipif(not (DIST / "index.html").is_file(), reason="the bundle is not built")
def test_the_shipped_bundle_holds_to_its_bounds():
    files = [path for path in DIST.rglob("*") if path.is_file()]
    made = StudioBundle.read(DIST)
    assert made is not None
    assert len(files) <= 25
    assert sum(path.stat().st_size for path in files) <= 1_500_000
    page = made.page.data.decode()
    assert not re.search(r"<script\b(?![^>]*\bsrc=)[^>]*>", page), (
        "an inline script, which the policy forbids"
    )
    assert all(address.rpartition("/")[2] in made.assets for address in addresses(page))
