"""--overwrite replaces models, never anything else that has the name by chance."""

import pytest

import streammerge
from streammerge.errors import OutputError, RecipeError


def merge(pair, output, **options):
    base, agent = pair
    return streammerge.merge(base, [agent], output, method="ram", **options)


def test_a_folder_that_is_no_output_is_left_alone(pair, tmp_path):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "src/thesis.txt").write_text("years")
    (project / "model.safetensors").write_text("weights of somebody else")
    with pytest.raises(OutputError, match="project: is no model that was written here, and is not replaced"):
        merge(pair, project, overwrite=True)
    assert (project / "src/thesis.txt").read_text() == "years"
    (project / "streammerge-manifest.json").write_text("{}")
    merge(pair, project, overwrite=True)
    assert not (project / "src").exists()


@pytest.mark.parametrize("name", ["notes.txt", "out"])
def test_a_file_that_is_no_model_is_left_alone(pair, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}: is no model that was written here"):
        merge(pair, tmp_path / name, overwrite=True)
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_called_like_a_file_is_left_alone(pair, tmp_path):
    (tmp_path / "out.safetensors").mkdir()
    (tmp_path / "out.safetensors/mine").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.safetensors: is no model that was written here"):
        merge(pair, tmp_path / "out.safetensors", overwrite=True)


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_an_output_needs_a_name(pair, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="is a place, not a name"):
        merge(pair, place, overwrite=True)
