"""The model files on this machine: where they are, what they are, and which one a name means. No torch."""
