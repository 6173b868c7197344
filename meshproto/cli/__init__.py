"""`mesh`, the command people type: a thin client of a user node's HTTP."""
