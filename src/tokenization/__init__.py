"""Parts of tokenizers: the base class, the character tokenizer, validation of tokenizer.json.

Flow: text -> `pieces` (split where no merge can cross) -> ids, by `basic` or `tokenizer`'s BPE.
Start with: `base.Tokenizer`.
Rule: depends on no model and no corpus; the public API is `tokenizer`.
"""
