"""`mesh chat`: with whom, and how."""

import os
import sys

import click

from meshproto.cli.exits import Exit
from meshproto.cli.render import one_line
from meshproto.client.errors import Problem
from meshproto.client.node import Node

HISTORY_MESSAGES = 30  # a screenful and a little more


def converse(node: Node, name: str, *, history: int | None, as_json: bool) -> Exit:
    """Until the person, or standard input, ends it."""
    warning = _meet(node, name)
    if as_json or not _has_terminal():
        from meshproto.cli.chat_lines import ChatLines  # noqa: PLC0415

        if warning is not None:
            click.echo(f"mesh: {warning}", err=True)
        return ChatLines(node, name, history=history or 0, as_json=as_json).run()
    from meshproto.cli.chat_screen import ChatScreen  # noqa: PLC0415 -- a tenth of a second, for terminals only

    screen = ChatScreen(node, name, history=HISTORY_MESSAGES if history is None else history, warning=warning)
    ended = screen.run()
    for entry in screen.unsent():  # nothing that was typed disappears without a word
        click.echo(f"mesh: not sent, as your node was away: {one_line(entry.text)}", err=True)
    if waiting := screen.waiting():
        click.echo(f"{waiting} of your messages wait for {name}: your node keeps trying; `mesh queue` says why.")
    return Exit.UNREACHABLE if screen.unsent() else ended


def _meet(node: Node, name: str) -> str | None:
    """Raises `Problem` when nobody has that name. What a person has to know before they write."""
    try:
        contact = node.contact(name).document
    except Problem as problem:
        if problem.status != 404:
            raise
    else:
        if contact["offered"] is None:
            return None
        return f"THE KEY OF {one_line(contact['name'])} HAS CHANGED: ask them about it, then see mesh trust {name}"
    try:
        node.lookup(name)
    except Problem as problem:
        if problem.status != 503:  # no seed can be asked: the node says so of what is sent
            raise
    return None


def _has_terminal() -> bool:
    """One that can be drawn upon."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
