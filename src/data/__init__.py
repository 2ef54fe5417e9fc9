"""From sources to documents, and from documents to what is trained on and what is held out.

Flow: `sources` (which files) -> `downloads`, `text_files` (bytes, text) -> `readers`, `gutenberg`
(documents) -> `corpus` (all of them) -> `splits`, `dedup` (training and validation text).
Start with: `corpus.read_documents`.
Rule: knows no model and no tokenizer; the front door to windows of tokens is `dataset`.
"""
