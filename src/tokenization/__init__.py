"""What tokenizers are made of: the interface, the character tokenizer, checks of tokenizer.json.

Flow: text -> `pieces` (cut where no merge can cross) -> ids, by `basic` or the BPE of `tokenizer`.
Start with: `base.Tokenizer`.
Rule: knows no model and no corpus; the front door is `tokenizer`.
"""
