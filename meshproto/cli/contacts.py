"""Whose keys are known: `mesh contacts`, `mesh trust`, `mesh forget`, `mesh fingerprint`."""

import sys

import click

from meshproto.cli.qr import rows
from meshproto.cli.render import NOTHING, Screen, moment, one_line
from meshproto.client.errors import Document, Problem
from meshproto.client.node import Node

QR_STYLE = "black on bright_white"  # a scanner wants dark on light, whatever the terminal's own colours are


def known(screen: Screen, answer: Document) -> None:
    """The contacts; below them, loudly, whose key has changed."""
    contacts = answer["contacts"]
    if not contacts:
        screen.line("No message was exchanged with anybody yet.")
        return
    rows_ = [(c["address"], c["groups"], moment(c["first_seen"]), _verified(c), _state(c)) for c in contacts]
    screen.table(("address", "fingerprint", "first seen", "verified", ""), rows_)
    for contact in contacts:
        if contact["offered"]:
            _warn(screen, contact)


def changed(screen: Screen, contact: Document) -> None:
    """One contact after it was trusted."""
    screen.line(f"{one_line(contact['name'])} has the key {one_line(contact['groups'])}: verified.", "green")


def forgotten(screen: Screen, contact: Document) -> None:
    screen.line(f"{one_line(contact['name'])} is forgotten: the next key seen for that name counts.")


def identify(screen: Screen, key: Document) -> None:
    """Name, fingerprint and QR code of a key: what two people hold side by side."""
    screen.table((), [("name", key["name"]), ("address", key["address"]), ("key", key["groups"])])
    _show_code(screen, key)


def whose(node: Node, name: str | None) -> Document:
    """The key of a name, pinned or as the seeds tell it now; None: the node's own."""
    if name is None:
        return node.status().document
    return _contact(node, name) or node.lookup(name).document


def choose(screen: Screen, node: Node, name: str) -> str:
    """Show the keys of a name and ask whether the latest is to be trusted; its fingerprint. Raises `click.Abort`."""
    if not sys.stdin.isatty():
        raise click.UsageError("Without a terminal nobody can be asked: mesh trust NAME FINGERPRINT.")
    contact = whose(node, name)
    offered: Document | None = contact.get("offered")
    rows_ = [("name", contact["name"])]
    if offered is None:
        rows_.append(("key", contact["groups"]))
    else:
        rows_ += [
            ("known key", contact["groups"]),
            ("since", moment(contact["first_seen"])),
            ("new key", offered["groups"]),
            ("seen", moment(offered["seen_at"])),
        ]
    screen.table((), rows_)
    latest = contact if offered is None else offered
    _show_code(screen, latest)
    if offered is not None:
        screen.line("The key has changed: either they have a new one, or somebody pretends to be them.", "bold red")
    question = f"Has {contact['name']} told you, by other means, that this is the key: {latest['groups']}?"
    click.confirm(one_line(question), abort=True)
    return str(latest["fingerprint"])


def _contact(node: Node, name: str) -> Document | None:
    try:
        return node.contact(name).document
    except Problem as problem:
        if problem.status != 404:  # not a contact yet
            raise
        return None


def _show_code(screen: Screen, key: Document) -> None:
    try:
        code = rows(str(key["address"]))
        "".join(code).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return  # blocks are all there is to draw it with
    for row in code:
        screen.line(row, QR_STYLE)


def _warn(screen: Screen, contact: Document) -> None:
    name, offered = one_line(contact["name"]), contact["offered"]
    screen.line(f"THE KEY OF {name} HAS CHANGED:", "bold red")
    screen.line(f"  known  {one_line(contact['groups'])}  since {moment(contact['first_seen'])}", "bold red")
    screen.line(f"  new    {one_line(offered['groups'])}  since {moment(offered['seen_at'])}", "bold red")
    screen.line(f"Nothing goes to the new key or comes from it until you have asked {name} about it: mesh trust {name}")


def _verified(contact: Document) -> str:
    return NOTHING if contact["verified_at"] is None else moment(contact["verified_at"])


def _state(contact: Document) -> str:
    return "KEY CHANGED" if contact["offered"] else ""
