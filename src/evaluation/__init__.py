"""What a model has learned, and what a run has logged.

Flow: `loss` (perplexity, bits per byte; how much is copied), `harness` (lm-eval tasks);
`run_log` (a run's folder, read back) -> `charts`, `html` -> `report` (report.html).
Start with: `loss.evaluate`.
Rule: changes no weights and prints nothing.
"""
