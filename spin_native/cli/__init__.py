"""The command line `spin-native`: parse, call, print. Data goes to stdout, everything else to stderr."""
