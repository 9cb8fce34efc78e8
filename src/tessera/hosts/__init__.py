"""Vision-language models of transformers with parts plugged in.

Layers, the lowest first; a module imports its own layer and those below:

    values         values prompts sequence
    models         architecture families tiny_configs zoo
    overrides      attention_override taps
    caches         caches remap
    forward        forward
    contract       contract rotary layer_inputs reader pixels
    part           part context token_reduction clips
    hooks          inputs captures boundary positions layers logits report
    plugging       plug check
"""
