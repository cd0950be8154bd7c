"""The studio's committed bundle: built from the sources beside it, small, the same from each build."""

import hashlib
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from limner.studio import DIST

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
REBUILD = "run `npm ci && npm run build` in web/ and commit src/limner/studio/dist"


def sources() -> str:
    """What `web/scripts/sources.js` writes: the digest of each file that the bundle is built from."""
    files = (
        "index.html",
        "package.json",
        "package-lock.json",
        "svelte.config.js",
        "tsconfig.json",
        "vite.config.ts",
    )
    inside = [
        path for name in ("src", "public", "scripts") for path in (WEB / name).rglob("*") if path.is_file()
    ]
    found = {path.relative_to(WEB).as_posix(): path for path in [*(WEB / name for name in files), *inside]}
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"
        for name, path in sorted(found.items())
        if not name.endswith(".test.ts") and path.name != "api.types.ts"
    )


def test_the_bundle_is_built_from_these_sources():
    assert (DIST / "SOURCES.sha256").read_text() == sources(), REBUILD


def test_the_bundle_is_small_and_refers_to_nothing_outside():
    files = [path for path in DIST.rglob("*") if path.is_file()]
    assert len(files) <= 25
    assert sum(path.stat().st_size for path in files) <= 1_500_000
    assert not [path.name for path in files if path.suffix in (".map", ".woff2", ".ttf")]
    assert "<script>" not in (DIST / "index.html").read_text()


def test_the_description_of_the_api_is_that_of_the_application():
    described = runpy.run_path(str(WEB / "openapi.py"))["description"]()
    assert (WEB / "openapi.json").read_text(encoding="utf-8") == described, "run `python web/openapi.py`"


@pytest.mark.node
def test_another_build_gives_the_same_bytes(tmp_path):
    """In a copy, with the packages of the lock file: types, unit tests, build."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no Node")
    web = tmp_path / "web"
    shutil.copytree(WEB, web, ignore=shutil.ignore_patterns("node_modules", "api.types.ts"))
    install = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=web, capture_output=True, text=True
    )
    if install.returncode:
        pytest.skip(f"npm cannot install the packages: {install.stderr[-200:]}")
    for script in ("check", "test", "build"):
        done = subprocess.run(["npm", "run", script], cwd=web, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    built = tmp_path / "src/limner/studio/dist"
    assert contents(built) == contents(DIST), REBUILD


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
