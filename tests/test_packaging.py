import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source archive, built from a copy of what git tracks, so that the tree stays clean."""
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file() and (ROOT / name).stat().st_size < 1_000_000:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def modules(package):
    return {f"{package}/{p.relative_to(ROOT / package)}" for p in (ROOT / package).rglob("*.py")}


def test_the_wheel_holds_streammerge_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    code = {name for name in names if ".dist-info/" not in name}
    data = {"streammerge/py.typed", "streammerge/gguf/pretokenizers.json", "streammerge/inspection/page.html"}
    assert code == modules("streammerge") | {f"streammerge/{name}" for name in modules("formats")} | data
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_archive_is_complete_and_small(built):
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert modules("streammerge") | modules("formats") <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "docs/design.md"} <= names
    assert not any(name.startswith(("bench/", "tests/")) for name in names)
    assert built[1].stat().st_size < 350_000


def test_a_normal_install_runs(built, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(built[0]).extractall(site)
    code = "import streammerge as s, streammerge.formats; print(s.formats.__file__, s.merge.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    path, name = done.stdout.split()
    assert Path(path) == site / "streammerge/formats/__init__.py" and name == "merge"


def test_formats_never_imports_the_rest():
    for path in (ROOT / "formats").glob("*.py"):
        for line in path.read_text().splitlines():
            assert "import streammerge" not in line and "from streammerge" not in line and "from .." not in line, path
