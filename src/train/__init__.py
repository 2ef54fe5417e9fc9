"""Training: batches to gradients to weights, which can be interrupted and resumed exactly.

Flow: `setup` (text, tokenizer, model) -> `trainer` -> `step_runner` -> `accumulator`
(micro-batches) -> `step` (loss, gradients, update) -> `optimizer`, at the rate of `schedule`.
Beside it: `checkpoint`, `run_folder`, `metrics`, `distributed`; before it: `planner`, `estimates`.
Start with: `trainer.Trainer.fit`, then `step.accumulate_gradients`.
Rule: must not import `inference` or `evaluation`: `evaluate` and `sample` are passed to `Trainer`.
"""
