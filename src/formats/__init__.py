"""Models on disk: a run's folder, a model's folder, and other programs' formats.

Flow: `weights` (safetensors) -> `run_dir`, `model_dir` (a model, its tokenizer, its configuration)
-> `huggingface` (in and out), `gguf`, `onnx` (out), behind `export`.
Start with: `model_dir.load_model`.
Rule: nothing on disk is ever unpickled, and what a file says is checked before it is used.
"""
