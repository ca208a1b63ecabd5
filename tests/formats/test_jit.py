"""Where compiled code is kept."""

import shutil
from pathlib import Path

from streammerge import kernels
from streammerge.formats import jit

FORMATS, KERNELS = Path(jit.__file__).parent, Path(kernels.__file__).parent


def test_an_edit_of_any_source_that_is_compiled_changes_the_folder_of_compiled_code(tmp_path):
    copies = tmp_path / "formats", tmp_path / "kernels"
    for folder, copy in zip((FORMATS, KERNELS), copies):
        shutil.copytree(folder, copy)
    digests = {jit.CACHE.name}
    for name in ("formats/jit.py", "formats/codecs.py", "formats/quants/lanes.py", "kernels/ram.py", "kernels/sums.py"):
        assert jit.sources_digest(*copies) in digests
        with (tmp_path / name).open("a") as file:
            file.write("# edited")
        assert jit.sources_digest(*copies) not in digests
        digests.add(jit.sources_digest(*copies))


def test_users_of_the_decorators_are_in_the_digest():
    users = {path for path in FORMATS.rglob("*.py") if "jit import" in path.read_text()}
    assert users <= {FORMATS / "codecs.py", *FORMATS.glob("quants/*.py")}
    users = {path for path in KERNELS.parent.rglob("*.py") if "jit import jit" in path.read_text()}
    assert {path for path in users if FORMATS not in path.parents} <= {*KERNELS.glob("*.py")}
