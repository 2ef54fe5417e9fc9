"""Evaluation of a trained model, and reports of training runs.

Flow: `loss` (perplexity, bits per byte), `preferences` (pairs), `memorization` (copies of the
training text), `harness` (lm-eval tasks); `run_log` (logs of a run) -> `charts`, `html` ->
`report` (report.html).
Start with: `loss.evaluate`.
Rule: changes no weights and prints nothing.
"""
