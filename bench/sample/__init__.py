"""Sample checkpoints: three real agents of SmolLM2-135M-Instruct, and a generator for any Llama shape."""
