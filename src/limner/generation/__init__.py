"""Generations: coroutines that yield model calls. Start at story.py."""
