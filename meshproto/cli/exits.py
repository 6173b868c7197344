"""How `mesh` ends: a code for scripts and a sentence for people."""

from enum import IntEnum

from meshproto.cli.ledger import BulkRefused
from meshproto.cli.render import one_line
from meshproto.client.errors import KeyChanged, MessageEnded, Problem, Unreachable, UserNotFound


class Exit(IntEnum):
    """Exit codes:
    0  delivered, queued, or done
    1  an error of our own, or ended with Ctrl-C
    2  wrong usage, also when only the node can tell (400)
    3  the node is not reachable
    4  not found: a user, or a message
    5  refused (401, 403, 409)
    6  too large, or slow down (413, 429)
    7  no seed is reachable (503)
    8  something is wrong: what doctor has found, or a file that is damaged
    Where several messages fail (send --bulk, cancel), the highest of their codes.
    """

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    TOO_MUCH = 6
    NO_SEED = 7
    WRONG = 8


class FilesRefused(Exception):
    """Files of a node, or for one, that cannot be used: the text says why and what to do. `damaged`: it is their
    content."""

    def __init__(self, text: str, *, damaged: bool = False) -> None:
        super().__init__(text)
        self.damaged = damaged


_EXITS = {
    400: Exit.USAGE,
    401: Exit.REFUSED,
    403: Exit.REFUSED,
    404: Exit.NOT_FOUND,
    409: Exit.REFUSED,
    413: Exit.TOO_MUCH,
    429: Exit.TOO_MUCH,
    503: Exit.NO_SEED,
}

_ADVICE = {
    400: "change what you asked for and try again",
    401: "give the node's token with --token-file FILE; it is the file `token` in the node's state directory",
    403: "reach the node under its own address with --node URL, and give its token with --token-file FILE",
    409: "see what it clashes with and send it under another --id",
    404: "see `mesh queue` for what waits, `mesh sent` for what was sent, and `mesh contacts` for whose keys are known",
    405: "the node is older than this mesh: update it",
    413: "send it in smaller parts, or send the address of where it can be fetched",
    415: "the node is older than this mesh: update it",
    429: "wait a little and try again",
    503: "start a seed, or wait until one is back and try again",
}
_KEY_ADVICE = "ask its owner for the fingerprint, and tell your node with `mesh trust NAME FINGERPRINT`"
_DELIVERED_ADVICE = "its recipient has it, and it cannot be taken back"
_ENDED_ADVICE = "this is how it ended; to send it again, give it another id"
_NOT_FOUND_ADVICE = "check the spelling, or ask its owner to register it with a seed of this mesh"
_OTHER_ADVICE = "see the node's log, then try again"
_START_ADVICE = "start it with `twistd -n --pidfile= meshuser --name NAME`, or say where it is with --node URL"
_UNCERTAIN_ADVICE = (
    "whether the message was taken is not known; see `mesh queue`, and use --id, which makes sending again harmless"
)
_REPORT_ADVICE = "please report it together with what `mesh --version` prints"


def exit_code(error: Exception) -> Exit:
    """The exit code that an error ends in."""
    if isinstance(error, Unreachable):
        return Exit.UNREACHABLE
    if isinstance(error, FilesRefused) and error.damaged:
        return Exit.WRONG
    if isinstance(error, BulkRefused | FilesRefused):
        return Exit.USAGE
    if not isinstance(error, Problem):
        return Exit.FAILED
    return _EXITS.get(error.status, Exit.FAILED)


def sentence(error: Exception) -> str:
    """What went wrong and what to do about it, in one line that is safe to show."""
    if isinstance(error, BulkRefused | FilesRefused):
        return f"{what(error)}."
    return f"{what(error)}: {advice(error)}."


def what(error: Exception) -> str:
    """What went wrong, in one line that is safe to show."""
    if isinstance(error, Unreachable):
        return one_line(f"No user node answers at {error.url} ({error.reason})")
    if isinstance(error, BulkRefused | FilesRefused):
        return one_line(error)
    if not isinstance(error, Problem):
        return one_line(f"This is a fault of mesh itself ({type(error).__name__}: {error})")
    return one_line(f"{error.title} ({error.detail.rstrip('.')})" if error.detail else error.title)


def advice(error: Exception) -> str:
    """What to do about it, where it does not say so itself."""
    if isinstance(error, Unreachable):
        return _UNCERTAIN_ADVICE if error.uncertain else _START_ADVICE
    return _advice(error) if isinstance(error, Problem) else _REPORT_ADVICE


def _advice(problem: Problem) -> str:
    if isinstance(problem, UserNotFound):
        return _NOT_FOUND_ADVICE
    if isinstance(problem, KeyChanged):
        return _KEY_ADVICE
    if isinstance(problem, MessageEnded):
        return _DELIVERED_ADVICE if problem.title == "message delivered" else _ENDED_ADVICE
    usual = _ADVICE.get(problem.status, _OTHER_ADVICE)
    return usual if problem.retry_after_s is None else f"{usual} (in {problem.retry_after_s} s)"
