"""GGUF output: which type each tensor gets, what the metadata says, and how a model's tensors are called there.

``policy.py`` and ``imatrix.py`` follow llama-quantize; ``names.py``, ``llama.py``, ``metadata.py`` and
``tokenizer.py`` follow convert_hf_to_gguf.py, both of llama.cpp (https://github.com/ggml-org/llama.cpp).
``template.py`` and ``match.py`` take all of that from a GGUF file of the base, for architectures not built in.
Files are laid out and written by ``streammerge.formats.gguf``.
"""
