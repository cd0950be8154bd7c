"""LoRA and other weight adapters, textual inversion, IP-Adapters: files that are applied to a model."""
