"""The picture world: small illustrated scenes with exact captions, and what is trained on them."""
