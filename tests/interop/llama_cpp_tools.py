"""llama.cpp's own converter, quantizer and runtime, for comparing whole files.

``scripts/interop`` installs llama-cpp-python and unpacks its source package, which holds the converter; LLAMA_CPP in
the environment names that folder. Where either is missing, the tests that ask for them are skipped.
"""

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from streammerge.formats.gguf import GgufSource


def source_folder():
    """The folder with convert_hf_to_gguf.py."""
    folder = os.environ.get("LLAMA_CPP")
    if folder is None or find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not here: scripts/interop installs it, sets LLAMA_CPP and runs these tests")
    assert (Path(folder) / "convert_hf_to_gguf.py").is_file(), f"LLAMA_CPP={folder} holds no convert_hf_to_gguf.py"
    return Path(folder)


def convert(model, target, outtype="auto", pre=None):
    """llama.cpp's converter on a model folder, in a process of its own. ``pre`` names an unknown pre-tokenizer."""
    root = str(source_folder())
    patch = "" if pre is None else f"base.TextModel.get_vocab_base_pre = lambda self, tokenizer: {pre!r}\n"
    driver = (
        f"import runpy, sys\nsys.path.insert(0, {root!r})\nimport conversion.base as base\n{patch}"
        f"sys.argv = ['convert', {str(model)!r}, '--outfile', {str(target)!r}, '--outtype', {outtype!r}]\n"
        f"runpy.run_path({root!r} + '/convert_hf_to_gguf.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def quantize(source, target, number, *, imatrix=None, **flags):
    """llama_model_quantize. ``imatrix``: by tensor, float32 weights; ``flags``: fields of its parameters."""
    import llama_cpp

    source_folder()
    silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 2
    for name, value in flags.items():
        setattr(params, name, value)
    if imatrix is not None:
        kind, floats = llama_cpp.llama_model_imatrix_data, ctypes.c_float
        entries = [kind(n.encode(), (floats * w.size)(*w.ravel().tolist()), w.size) for n, w in imatrix.items()]
        params.imatrix = (kind * (len(entries) + 1))(*entries)
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, f"llama_model_quantize failed on {source}"
    return target


_quiet = None


def silence():
    """llama.cpp says a line for every tensor."""
    global _quiet
    if _quiet is None:
        import llama_cpp

        _quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))


def check_same_tensors(ours, theirs):
    """The same tensors in the same order, with the same types, shapes, places and bytes."""
    ours, theirs = GgufSource(ours), GgufSource(theirs)
    table = [[(t.name, t.dtype, t.shape) for t in source.tensors.values()] for source in (ours, theirs)]
    assert table[0] == table[1]
    found, wanted = (np.memmap(source.path, np.uint8, "r") for source in (ours, theirs))
    for name, info in ours.tensors.items():
        other = theirs.tensors[name]
        a, b = found[info.offset :][: info.nbytes], wanted[other.offset :][: other.nbytes]
        differing = int(np.count_nonzero(a != b))
        assert differing == 0, f"{name} ({info.dtype}): {differing} of {info.nbytes} bytes differ"


def check_same_metadata(ours, theirs, but=()):
    """The same keys in the same order with the same values, apart from those that begin with one of ``but``."""
    kept = [
        [(pair.key, pair.kind, pair.raw) for pair in GgufSource(path).key_values.values()] for path in (ours, theirs)
    ]
    kept = [[entry for entry in entries if not entry[0].startswith(tuple(but))] for entries in kept]
    assert kept[0] == kept[1]
