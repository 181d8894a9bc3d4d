"""Linear probes, and the importance of the neurons they read."""

from spin_native.probes.probes import LinearProbe, LogisticProbe

__all__ = ["LinearProbe", "LogisticProbe"]
