"""Where compiled code is kept."""

import shutil
from pathlib import Path

from streammerge.formats import jit


def test_an_edit_of_any_inlined_helper_changes_the_folder_of_compiled_code(tmp_path):
    copy = tmp_path / "formats"
    shutil.copytree(Path(jit.__file__).parent, copy)
    digests = {jit.CACHE.name}
    for name in ("jit.py", "codecs.py", "quants/lanes.py", "quants/search.py"):
        assert jit.sources_digest(copy) in digests
        with (copy / name).open("a") as file:
            file.write("# edited")
        assert jit.sources_digest(copy) not in digests
        digests.add(jit.sources_digest(copy))


def test_users_of_the_decorators_are_in_the_digest():
    package = Path(jit.__file__).parent
    users = {path for path in package.rglob("*.py") if "jit import" in path.read_text()}
    assert users <= {package / "codecs.py", *package.glob("quants/*.py")}
