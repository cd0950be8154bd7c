"""Safety: what a policy says about prompts, and the watermark of images. No HTTP, no torch."""
