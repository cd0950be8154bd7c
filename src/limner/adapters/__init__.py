"""LoRA and its kin and textual inversion: data that is applied to a model from outside."""
