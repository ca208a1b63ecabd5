import os
from pathlib import Path

import pytest

from streammerge.formats.atomic import Staging
from streammerge.formats.errors import OutputError


def test_the_output_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with Staging(target) as staging:
        (staging.folder / "a").write_text("1")
        assert not target.exists()
        staging.finish()
    assert (target / "a").read_text() == "1"
    assert [entry.name for entry in target.iterdir()] == ["a"]
    assert os.listdir(target.parent) == ["out"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out") as staging:
        (staging.folder / "a").write_text("1")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_single_file(tmp_path):
    target = tmp_path / "out.safetensors"
    with Staging(target) as staging:
        (staging.folder / "out.safetensors").write_text("1")
        staging.finish(["out.safetensors"])
    assert target.read_text() == "1"
    assert os.listdir(tmp_path) == ["out.safetensors"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").write_text("old")
    with Staging(tmp_path / "out") as staging:
        staging.clear()
        assert [entry.name for entry in staging.folder.iterdir()] == [".lock"]
        staging.finish()
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwriting_replaces_only_at_the_end(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    else:
        target.write_text("old")
    with Staging(target) as staging:
        (staging.folder / "out").write_text("new")
        assert target.exists()
        staging.finish(["out"] if kind == "file" else (), replaced=[target])
    assert os.listdir(tmp_path) == ["out"]
    assert (target / "out" if kind == "folder" else target).read_text() == "new"


def parts(number, count, text=""):
    return {f"m-{n + 1:05d}-of-{count:05d}.gguf": text for n in range(number)}


def test_several_files_are_replaced_all_or_none(tmp_path, monkeypatch):
    old, new = parts(3, 3, "old"), parts(3, 3, "new")
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "m.gguf.old").write_text("somebody's")
    rename = Path.rename

    def failing(self, target):
        if self.parent.name == "m.gguf.partial" and self.name == "m-00001-of-00003.gguf":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    def write(staging):
        for name, text in new.items():
            (staging.folder / name).write_text(text)
        staging.finish(list(new), replaced=[tmp_path / name for name in old])

    monkeypatch.setattr(Path, "rename", failing)
    said = "m.gguf: cannot be put in place: Input/output error"
    with pytest.raises(OutputError, match=said), Staging(tmp_path / "m.gguf") as staging:
        write(staging)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {**old, "m.gguf.old": "somebody's"}
    monkeypatch.undo()
    with Staging(tmp_path / "m.gguf") as staging:
        write(staging)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {**new, "m.gguf.old": "somebody's"}


def test_what_appeared_meanwhile_is_not_written_over(tmp_path):
    said = "out: cannot be put in place: it exists already"
    with pytest.raises(OutputError, match=said), Staging(tmp_path / "out") as staging:
        (staging.folder / "out").write_text("ours")
        (tmp_path / "out").write_text("theirs")
        staging.finish(["out"])
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out").read_text() == "theirs"


def test_the_lock_holds_until_all_is_in_place(tmp_path, monkeypatch):
    rename, refused = Path.rename, []

    def second_run(self, target):
        try:
            with Staging(tmp_path / "out"):
                pass
        except OutputError as error:
            refused.append(str(error))
        return rename(self, target)

    with Staging(tmp_path / "out") as staging:
        (staging.folder / "out").write_text("1")
        monkeypatch.setattr(Path, "rename", second_run)
        staging.finish(["out"])
    assert len(refused) == 1 and "another run is writing this output" in refused[0]
    assert (tmp_path / "out").read_text() == "1"


def test_an_unfinished_output_leaves_no_folders_either(tmp_path):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "a" / "b" / "out"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_two_runs_cannot_write_the_same_output(tmp_path):
    with Staging(tmp_path / "out"):
        with pytest.raises(OutputError, match="another run is writing this output"), Staging(tmp_path / "out"):
            pass
        assert (tmp_path / "out.partial").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/out"), Staging(tmp_path / "file" / "out"):
        pass


def _killed_at(step, target, files, replaced):
    """Give an output its name in a process that ends, as by kill -9, before its ``step``-th change of a name; whether
    it came to that."""
    child = os.fork()
    if child == 0:
        with Staging(target) as staging:
            for name in [*files, ".journal"]:
                (staging.folder / name).write_text(f"new {name}")
            left = iter(range(step - 1))

            def counted(call):
                return lambda *arguments, **more: os._exit(9) if next(left, None) is None else call(*arguments, **more)

            for name in ("rename", "replace", "unlink"):
                setattr(Path, name, counted(getattr(Path, name)))
            staging.finish(files if target.suffix else (), replaced, [".journal"])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_kill_while_names_are_given_loses_nothing(tmp_path, name, overwrite):
    """All is in place, or all is as before, once the next run begins; and what was replaced stays nowhere for long."""
    files = ["1.gguf", "2.gguf", "manifest"]
    for step in range(1, 99):
        target = tmp_path / str(step) / name
        target.parent.mkdir()
        places = [target.with_name(file) for file in files] if target.suffix else [target / file for file in files]
        for place in places if overwrite else ():
            place.parent.mkdir(exist_ok=True)
            place.write_text("old")
        replaced = (places if target.suffix else [target]) if overwrite else []
        if not _killed_at(step, target, files, replaced):
            break
        with Staging(target) as staging:
            staging.keep = True
            found = [place.read_text() if place.exists() else None for place in places]
            held = [path.read_text() for file in files if (path := staging.folder / file).exists()]
        new = [f"new {file}" for file in files]
        before = ["old"] * 3 if overwrite else [None] * 3
        assert (found, held) == (before, new) or found == new
        assert {path.name for path in target.parent.iterdir()} <= {name, f"{name}.partial", *files}
    assert step > 5


def test_what_vouches_for_files_is_cleared_before_them(tmp_path, monkeypatch):
    cleared = []
    monkeypatch.setattr(Path, "unlink", lambda path, **more: cleared.append(path.name))
    with Staging(tmp_path / "out") as staging:
        for name in ("b", ".journal", "a"):
            (staging.folder / name).touch()
        staging.clear()
    assert cleared == [".journal", "a", "b"]
