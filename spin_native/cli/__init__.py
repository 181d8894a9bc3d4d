"""The command line `spin-native`: parse, call, print. Data goes to stdout, everything else to stderr."""

from spin_native import tables

__all__ = ["tables"]
