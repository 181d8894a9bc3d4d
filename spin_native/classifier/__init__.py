"""Labelled features to a small head that runs only as deep as it needs."""
