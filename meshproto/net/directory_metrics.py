"""What a seed tells Prometheus of the directory that it shares."""

from typing import Final

from meshproto.net.exposition import Family, Histogram, each, one
from meshproto.net.redis_counters import BOUNDS_S, ERRORS, OPERATIONS, Counters

PREFIX: Final = "meshproto_seed_directory_"


def of_directory(counters: Counters) -> list[Family]:
    took = Histogram(BOUNDS_S)
    took.counts, took.sum = list(counters.within), counters.answered_s
    operations = [(kind, counters.operations[kind]) for kind in OPERATIONS]
    errors = [(cause, counters.errors[cause]) for cause in ERRORS]
    return [
        one(f"{PREFIX}seconds", "histogram", "Until the shared directory answered.", took),
        each(f"{PREFIX}operations_total", "counter", "What it was asked, by kind.", "operation", operations),
        each(f"{PREFIX}errors_total", "counter", "What it did not answer, by cause.", "cause", errors),
        one(f"{PREFIX}outages_total", "counter", "Times that one of its nodes did not answer.", counters.outages),
    ]
