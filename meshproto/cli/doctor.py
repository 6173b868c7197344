"""`mesh doctor`: what is looked at, what it means, and what to do.

The findings are made by functions of what was seen, one for each thing that is looked at; `examine` goes and looks.
"""

import ipaddress
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import click

from meshproto import __version__
from meshproto.cli.exits import Exit, FilesRefused, advice, what
from meshproto.cli.progress import Bar
from meshproto.cli.render import Screen, moment, one_line, span
from meshproto.client.errors import Document, Problem, Unreachable
from meshproto.client.node import Node

OK, WARNING, WRONG = "ok", "warning", "wrong"
STYLES = {OK: "green", WARNING: "yellow", WRONG: "bold red"}

SLOW_MS = 1000.0  # a seed answers in milliseconds, and half-way round the world in 300
CLOCK_OFF_MS = 5_000  # more than any network takes
CLOCK_WRONG_MS = 300_000  # messages expire, keys change and records count by the time of day
FREE_BYTES_LOW = 1 << 30  # a copy of a well-filled database, and time to act
FREE_BYTES_MIN = 100 << 20  # some transactions, a WAL, the logs of others; then the node takes nothing more
OLD_S = 86_400  # what waits for longer is worth a look

SECRETS = ("keys.json", "token", "register-token")
DATABASE = "user.db"

Resolve = Callable[[str], set[str]]


@dataclass(frozen=True)
class Finding:
    """`about`: what was looked at. `advice`: what to do; a thing that is well needs none."""

    level: str
    about: str
    text: str
    advice: str | None = None


# -- the node -----------------------------------------------------------------------------------------------------


def of_node(status: Document, url: str, now_ms: float) -> Iterator[Finding]:
    """What the node says of itself."""
    yield Finding(OK, "node", f"{status['address']} answers at {url}, up for {span(status['uptime_s'])}")
    if status["version"] == __version__:
        yield Finding(OK, "version", f"node and command are {__version__}")
    else:
        text = f"the node is {status['version']}, the command is {__version__}"
        yield Finding(WARNING, "version", text, "update the older one, and restart the node")
    if status["disk"]:
        yield Finding(WRONG, "disk", status["disk"], "see what it says; the node goes on by itself when it can write")
    if changed := status["contacts"]["key_changed"]:
        text = f"of {changed} contacts the key has changed"
        yield Finding(WARNING, "keys of others", text, "see mesh contacts, and ask them by other means")
    oldest = status["outbox"]["oldest_at"]
    if oldest is not None and now_ms - oldest > OLD_S * 1000:
        text = f"{status['outbox']['waiting']} messages wait, the oldest since {moment(oldest)}"
        yield Finding(WARNING, "queue", text, "see mesh queue for whom, and why")


def of_home(status: Document) -> Finding:
    """Whether others find the node."""
    home = status["home"]
    if home and status.get("registered") is False:  # there is another with this one's key
        return Finding(
            WRONG, "registered", status["problem"], "one of them is a copy: see which has the latest messages"
        )
    if home:
        return Finding(OK, "registered", f"at {home['name']} ({home['address']})")
    remedy = "see what it says, or name a seed that runs with --seed HOST:PORT"
    return Finding(WRONG, "registered", f"nowhere: {status['problem'] or 'no seed has answered yet'}", remedy)


# -- seeds --------------------------------------------------------------------------------------------------------


def of_seeds(report: Document) -> Iterator[Finding]:
    """One for each seed that was asked."""
    seeds = report["seeds"]
    answering = [seed for seed in seeds if seed["reason"] is None]
    for seed in seeds:
        yield _of_seed(seed, alone=not answering)
    if not seeds:
        yield Finding(WRONG, "seeds", "this node knows none", "start it with --seed HOST:PORT")
    if report["unasked"]:
        yield Finding(OK, "seeds", f"{report['unasked']} more are known, and were not asked")


def _of_seed(seed: Document, *, alone: bool) -> Finding:
    where = f"{seed['name']} at {seed['address']}" if seed["name"] else seed["address"]
    about = "home seed" if seed["home"] else "seed"
    if seed["reason"] is not None:
        level = WRONG if alone else WARNING
        remedy = "see whether it runs and its port can be reached, or name another with --seed HOST:PORT"
        return Finding(level, about, f"{where} does not answer: {seed['reason']}", remedy)
    took = f"{where} answers in {seed['took_ms']:g} ms, version {seed['version']}"
    match seed["knows"]:
        case "other key":
            remedy = "choose another name, or see docs/security.md on names that are taken"
            return Finding(WRONG, about, f"{took}, and knows your name with another key", remedy)
        case "unknown":
            return Finding(WARNING, about, f"{took}, and does not know you", "wait some seconds for it to be told")
        case "older":
            text = f"{took}, and has an older record of you"
            return Finding(WARNING, about, text, "wait some seconds for it to be told the new one")
    if seed["took_ms"] > SLOW_MS:
        return Finding(WARNING, about, took, "see how busy it is and the way to it are, or use a nearer one")
    return Finding(OK, about, f"{took}, and knows you")


def of_clock(report: Document) -> Iterator[Finding]:
    """By what the seeds' clocks show; nothing, where none has told."""
    offsets = [seed["clock_ms"] for seed in report["seeds"] if seed["clock_ms"] is not None]
    if not offsets:
        return
    off_ms = -median(offsets)
    those = "that of the seed" if len(offsets) == 1 else f"those of {len(offsets)} seeds"
    if abs(off_ms) <= CLOCK_OFF_MS:
        yield Finding(OK, "clock", f"as {those}, to {abs(off_ms) / 1000:.1f} s")
        return
    direction = "ahead of" if off_ms > 0 else "behind"
    text = f"{span(abs(off_ms) / 1000)} {direction} {those}"
    level = WRONG if abs(off_ms) > CLOCK_WRONG_MS else WARNING
    yield Finding(level, "clock", text, "set this machine's time, by NTP for example, or tell whoever runs the seeds")


# -- the way to the node ------------------------------------------------------------------------------------------


def of_addresses(report: Document, resolve: Resolve) -> Iterator[Finding]:
    """Whether each address that others are told leads here, and fits what seeds elsewhere see."""
    seen = sorted({seed["sees"] for seed in report["seeds"] if seed["sees"] and not _is_loopback(seed["sees"])})
    for uri in report["uris"]:
        if uri["leads_here"]:
            yield Finding(OK, "address", f"{uri['uri']} leads here, in {uri['took_ms']:g} ms")
        else:
            remedy = "give an address that leads here with --advertise URI; try it from another machine too"
            yield Finding(WRONG, "address", f"{uri['uri']} does not lead here: {uri['reason']}", remedy)
        if seen:
            yield _as_seen(uri["uri"], seen, resolve)
    if not seen:
        yield Finding(OK, "address", "every seed that was asked is on this machine: none sees it from elsewhere")


def _as_seen(uri: str, seen: list[str], resolve: Resolve) -> Finding:
    host = urlsplit(uri).hostname or ""
    leads_to, sees = resolve(host), ", ".join(seen)
    if leads_to & set(seen):
        return Finding(OK, "address", f"{uri} is where seeds elsewhere see this node come from ({sees})")
    if leads_to and all(map(_is_loopback, leads_to)):
        text = f"{uri} means every machine's own, and seeds elsewhere see this node come from {sees}"
        remedy = "listen where others reach you (--listen) and give that address with --advertise URI"
        return Finding(WRONG, "address", text, remedy)
    if not leads_to:
        text = f"{uri}: nobody finds the host {host}"
        return Finding(WRONG, "address", text, "mend its DNS, or advertise an address")
    text = f"{uri} leads to {', '.join(sorted(leads_to))}, and seeds elsewhere see this node come from {sees}"
    remedy = "with a router or proxy between that may be right: try the address from another machine"
    return Finding(WARNING, "address", text, remedy)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def addresses_of(host: str) -> set[str]:
    """IP addresses of a host, as this machine resolves it."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # the latter for what can be no host's name
        return set()


# -- files --------------------------------------------------------------------------------------------------------


def of_files(state: Path, fingerprint: str | None) -> Iterator[Finding]:
    """The state directory. `fingerprint`: the running node's, if there is one."""
    try:
        yield _closed_to_others(state, "state directory", 0o700)
    except OSError as error:
        remedy = "give the node's state directory with --state DIR"
        yield Finding(WARNING, "state directory", f"{state} cannot be looked at: {error.strerror}", remedy)
        return
    for name in SECRETS:
        if (state / name).exists():
            yield _closed_to_others(state / name, name, 0o600)
    yield from _of_keys(state, fingerprint)
    yield from _of_database(state / DATABASE)
    yield of_space(shutil.disk_usage(state).free, state)


def _closed_to_others(path: Path, about: str, mode: int) -> Finding:
    found = stat.S_IMODE(path.stat().st_mode)
    if found & 0o077:
        return Finding(WRONG, about, f"others have access to {path} (mode {found:04o})", f"chmod {mode:o} {path}")
    return Finding(OK, about, f"{path} is yours alone (mode {found:04o})")


def _of_keys(state: Path, running: str | None) -> Iterator[Finding]:
    from meshproto.cli import files  # noqa: PLC0415 -- brings the node's own code along

    if not (state / "keys.json").exists():
        yield Finding(WRONG, "keys", f"there are none in {state}", "restore a backup; or the node makes new ones")
        return
    try:
        own = files.fingerprint(state)
    except FilesRefused as error:
        if "chmod" not in str(error):  # that was said of the file's mode
            yield Finding(WRONG, "keys", str(error), "restore keys.json from a backup")
        return
    if running is not None and own != running:
        text = f"those in {state} are not the ones of the node that answers"
        yield Finding(WARNING, "keys", text, "say which node with --node, and which directory with --state")
    else:
        yield Finding(OK, "keys", f"those of {own}")


def _of_database(path: Path) -> Iterator[Finding]:
    from meshproto.cli import files  # noqa: PLC0415 -- see above

    if not path.exists():
        yield Finding(WRONG, "database", f"there is no {path}", "restore a backup; or the node makes a new one")
        return
    yield _closed_to_others(path, "database", 0o600)
    try:
        with Bar("database"):
            damage = files.damage(path)
    except FilesRefused as error:
        yield Finding(WRONG, "database", str(error), "see what it says")
        return
    if damage:
        remedy = "stop the node and restore a backup (docs/operating.md says how)"
        yield Finding(WRONG, "database", f"{path} is damaged: {damage[0]}", remedy)
    else:
        yield Finding(OK, "database", f"{path} is whole ({_size(path.stat().st_size)})")


def of_space(free_bytes: int, path: Path) -> Finding:
    """Room on the file system."""
    text = f"{_size(free_bytes)} are free for {path}"
    if free_bytes < FREE_BYTES_MIN:
        return Finding(WRONG, "space", text, "free space at once: a full disk takes no message")
    if free_bytes < FREE_BYTES_LOW:
        return Finding(WARNING, "space", text, "free space, or keep less with --keep-days")
    return Finding(OK, "space", text)


def _size(size_bytes: float) -> str:
    for unit, unit_bytes in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.3g} {unit}"
    return f"{size_bytes:.0f} bytes"


# -- all of it ----------------------------------------------------------------------------------------------------


def examine(
    node: Node, state: Callable[[str | None], Path | None], resolve: Resolve = addresses_of
) -> Iterator[Finding]:
    """Everything, one after the other. `state`: the state directory, by the name that the node has told, if it has;
    None where nobody knows."""
    status: Document | None = None
    try:
        status = node.status().document
    except (Unreachable, Problem) as error:
        yield Finding(WRONG, "node", what(error), advice(error))
    if status is not None:
        yield from of_node(status, node.url, time.time() * 1000)
        yield of_home(status)
        yield from _of_report(node, resolve)
    directory = state(None if status is None else str(status["name"]))
    if directory is None:
        text = "not looked at: it is not known which it is"
        yield Finding(WARNING, "state directory", text, "give the node's state directory with --state DIR")
    else:
        yield from of_files(directory, None if status is None else str(status["fingerprint"]))


def _of_report(node: Node, resolve: Resolve) -> Iterator[Finding]:
    try:
        report = node.doctor().document
    except (Unreachable, Problem) as error:
        yield Finding(WRONG, "seeds", what(error), advice(error))
        return
    yield from of_seeds(report)
    yield from of_clock(report)
    yield from of_addresses(report, resolve)


def tell(findings: Iterable[Finding], *, as_json: bool) -> Exit:
    """Each as it is found, and at the end how many are not well."""
    levels: list[str] = []
    screen = Screen()
    for finding in findings:
        levels.append(finding.level)
        if as_json:
            click.echo(json.dumps(asdict(finding)))
        else:
            hint = f"; {finding.advice}" if finding.advice else ""
            screen.line(
                one_line(f"{finding.level:7}  {finding.about}: {finding.text.removesuffix('.')}{hint}."),
                STYLES[finding.level],
            )
    wrong, warnings = levels.count(WRONG), levels.count(WARNING)
    if not as_json:
        screen.line(f"{wrong} wrong, {warnings} to look at, {levels.count(OK)} ok.", "bold")
    return Exit.WRONG if wrong else Exit.DONE


def state_of(given: Path | None, name: str | None) -> Path | None:
    """The state directory: the one that was given, or that a node of this name, or of USER_NAME, has by itself."""
    from meshproto.cli import files  # noqa: PLC0415 -- see above

    if given is not None:
        return given
    name = os.environ.get("USER_NAME") or name
    return None if name is None else files.state_directory(None, lambda: name or "")
