"""The prompt language: from what people write to weighted chunks of token ids. Nothing here imports torch."""
