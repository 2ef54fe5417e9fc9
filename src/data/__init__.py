"""Data loading: sources to documents, and documents to a training and a validation split.

Flow: `sources` (files) -> `downloads`, `text_files` (bytes, text) -> `readers`, `gutenberg`
(documents) -> `corpus` (all documents) -> `splits`, `dedup` (training and validation split).
Start with: `corpus.read_documents`.
Rule: depends on no model and no tokenizer; token windows and batches are in `dataset`.
"""
