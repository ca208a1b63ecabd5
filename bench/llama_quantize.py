"""llama.cpp's quantizer as a process: python -m bench.llama_quantize SOURCE TARGET FILE_TYPE_NUMBER (two threads)."""

import ctypes
import sys


def main(source: str, target: str, number: str) -> int:
    """Quantize a GGUF file. Returns the exit status."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(number), 2
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
