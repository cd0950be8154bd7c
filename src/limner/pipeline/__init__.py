"""An old import path, kept for programs that read images' metadata by it; see `limner.images`."""
