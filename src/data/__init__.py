"""Data loading: sources to documents, token ids, windows and batches.

Flow: `sources`, `downloads` (files) -> `inputs`, `compression`, `archives` (streams) ->
`format_readers` and a module for each of the `formats` (documents) -> `readers` -> `corpus` (all
documents) -> `splits`, `dedup` (training and validation split) -> `tokens` (token ids) ->
`windows`, `planned_windows` -> `batches`. Start with: `corpus.read_documents`.
Rule: depends on no model; the front door, `TextDataset`, is in `dataset`.
"""
