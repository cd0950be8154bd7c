"""Safety: what a policy says about prompts and images, image checkers, and the watermark. No HTTP.

Only `compvis` imports torch.
"""
