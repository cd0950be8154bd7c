"""The engine: model calls of many generations, batched at every step."""
