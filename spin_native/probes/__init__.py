"""Linear probes, the importance of the neurons they read, and the controls that salient neurons must beat."""

from spin_native.probes.probes import LinearProbe, LogisticProbe

__all__ = ["LinearProbe", "LogisticProbe"]
