"""A model and texts to pooled features, in memory or on disk."""
