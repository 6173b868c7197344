"""Thin shells around :mod:`meshproto.core`: sockets, HTTP, SQLite and timers live here and nowhere else."""
