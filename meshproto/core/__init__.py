"""The rules of the mesh, pure: no Twisted, no clock, no global random.

Time comes in as `now` (seconds since 1970 UTC unless a name ends in `_ms`), randomness as a `random.Random`, entropy
for keys as a function; what is to be done comes back as frozen values, which the shells in :mod:`meshproto.net` carry
out.
"""
