"""Models on disk: run folders, model folders, and import and export of other formats.

Flow: `weights` (safetensors) -> `run_dir`, `model_dir` (a model, its tokenizer, its configuration)
-> `huggingface`, `gguf_import` (import); `huggingface`, `gguf`, `onnx` (export), behind `export`.
Start with: `model_dir.load_model`.
Rule: no pickle is ever loaded, and the content of a file is validated before it is used.
"""
