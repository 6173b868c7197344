"""A conversation on a terminal: what was said above, what is being typed below, and how it stands in between.

The whole screen is drawn anew whenever something changes, so a message that was queued is shown as delivered where it
stands. Text comes from other people: it was made harmless (`render.harmless`), and it is wrapped here, in a column of
its own, so that no line of it can begin where the times and names stand.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, Dimension, HSplit, Layout, UIContent, UIControl, VSplit, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from meshproto.cli.conversation import FAILED, UNSENT, Conversation, Entry
from meshproto.cli.exits import Exit
from meshproto.cli.render import moment, one_line
from meshproto.cli.talk import AHEAD_MESSAGES, Talk, View
from meshproto.client.node import Node

INPUT_LINES_MAX = 8  # of what is typed; the rest of a longer text is scrolled
TEXT_CELLS_MIN = 20  # however narrow the window is
TIME_CHARS = 5  # HH:MM
NAME_CELLS_MAX = 16
LINE_CHARS_PER_CELL = 8  # an emoji is made of some; marks without end above one letter take minutes to draw
HINT = "Enter sends, Alt-Enter begins a new line, PgUp and PgDn scroll, Ctrl-D or /quit ends"
HELP = "/quit ends, /help shows this, // at the beginning sends a line that begins with /"

_WORDS = {UNSENT: "not sent yet", FAILED: "not sent", "locating": "queued", "delivering": "queued"}

STYLE = Style.from_dict(
    {
        "bar": "reverse",
        "dim": "ansibrightblack",
        "them": "bold ansicyan",
        "own": "bold",
        "delivered": "ansigreen",
        "waits": "ansiyellow",
        "failed": "ansired",
        "loud": "bold ansired",
    }
)

Line = StyleAndTextTuples


class ChatScreen(View):
    """`warning`: a line that stays in sight."""

    def __init__(self, node: Node, name: str, *, history: int, warning: str | None = None) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: str | None = None
        self._note: str | None = warning
        self._error: Exception | None = None
        self._talk = Talk(node, name, self, self._tell, history=history)
        self._history = _History(self._talk.conversation)
        self._input = Buffer(multiline=True)
        self._application: Application[None] = Application(
            layout=self._layout(), key_bindings=self._keys(), style=STYLE, full_screen=True, mouse_support=False
        )

    def run(self) -> Exit:
        """Until the person ends it. Raises what ended the conversation, if anything did."""
        try:
            asyncio.run(self._run())
        finally:
            self._talk.stop()
        if self._error is not None:
            raise self._error
        self._talk.read_all()
        return Exit.DONE

    @property
    def conversation(self) -> Conversation:
        return self._talk.conversation

    def unsent(self) -> list[Entry]:
        """What was typed and not taken by the node."""
        return [entry for entry in self._talk.conversation.waiting() if entry.status == UNSENT]

    def waiting(self) -> int:
        """How many messages the node goes on to deliver."""
        return len(self._talk.conversation.waiting()) - len(self.unsent())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._talk.start()
        await self._application.run_async()

    def _tell(self, work: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(partial(self._do, work))

    def _do(self, work: Callable[[], None]) -> None:
        work()
        self._application.invalidate()

    # -- View ----------------------------------------------------------------------------------------------------

    def entry(self, entry: Entry, *, fresh: bool) -> None:
        if fresh and entry.own:
            self._history.to_end()

    def connection(self, problem: str | None) -> None:
        self._problem = problem

    def over(self, error: Exception) -> None:
        self._error = error
        if self._application.is_running:
            self._application.exit()

    # -- what is typed -------------------------------------------------------------------------------------------

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        is_empty = Condition(lambda: not self._input.text)
        keys.add("enter")(self._enter)
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        keys.add("c-d", filter=is_empty)(lambda event: event.app.exit())
        keys.add("c-c", filter=is_empty)(lambda event: event.app.exit())
        keys.add("c-c", filter=~is_empty)(lambda event: event.current_buffer.reset())
        keys.add("c-l")(lambda event: event.app.renderer.clear())
        keys.add("pageup")(lambda _: self._history.scroll(1))
        keys.add("pagedown")(lambda _: self._history.scroll(-1))
        return keys

    def _enter(self, event: KeyPressEvent) -> None:
        text = self._input.text.strip("\n")
        self._note = None
        if text == "/quit":
            event.app.exit()
        elif text.startswith("/") and not text.startswith("//"):
            self._note = HELP if text == "/help" else f"{one_line(text.split()[0])} is no command: {HELP}"
        elif text.strip() and not self._talk.say(text.removeprefix("/") if text.startswith("//") else text):
            self._note = f"{AHEAD_MESSAGES} messages wait for your node to come back: this one stays here until then"
            return
        self._input.reset(append_to_history=True)

    # -- how it looks --------------------------------------------------------------------------------------------

    def _layout(self) -> Layout:
        typed = Window(
            BufferControl(self._input),
            wrap_lines=True,
            height=lambda: Dimension(min=1, max=INPUT_LINES_MAX, preferred=1 + self._input.text.count("\n")),
            dont_extend_height=True,
        )
        rows = [
            Window(FormattedTextControl(self._head), height=1, style="class:bar"),
            Window(self._history),
            Window(FormattedTextControl(self._foot), height=1, style="class:bar"),
            VSplit([Window(FormattedTextControl("> "), width=2), typed]),
        ]
        return Layout(HSplit(rows), focused_element=typed)

    def _head(self) -> Line:
        return [("", f" {self._talk.conversation.name}  {presence_text(self._talk.conversation)}")]

    def _foot(self) -> Line:
        if self._problem is not None:
            return [("class:loud", f" not connected, trying again: {self._problem}")]
        return [("", f" {self._note or HINT}")]


class _History(UIControl):
    """The last lines that fit, or those further up to which was scrolled."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._pages_up = 0

    def scroll(self, pages: int) -> None:
        """Up by so many pages."""
        self._pages_up = max(0, self._pages_up + pages)

    def to_end(self) -> None:
        self._pages_up = 0

    def is_focusable(self) -> bool:
        return False

    def create_content(self, width: int, height: int) -> UIContent:
        """From the end backwards, so that a long conversation costs no more than what is seen of it."""
        page = max(1, height - 1)  # a line stays in sight when one scrolls
        wanted = height + self._pages_up * page
        lines: list[Line] = []
        entries = self._conversation.entries
        for before, entry in zip([None, *entries][-2::-1], reversed(entries), strict=False):
            day = None if before is not None and _day(before) == _day(entry) else _day(entry)
            lines[:0] = laid_out(entry, width, day)
            if len(lines) >= wanted:
                break
        up = min(self._pages_up * page, max(0, len(lines) - height))
        self._pages_up = min(self._pages_up, -(-up // page))
        shown = lines[max(0, len(lines) - height - up) : len(lines) - up]
        empty: Line = [("", "")]
        shown = [empty] * (height - len(shown)) + shown
        return UIContent(get_line=lambda at: shown[at], line_count=len(shown), show_cursor=False)


def presence_text(conversation: Conversation) -> str:
    """Whether the other is there."""
    presence = conversation.presence
    if presence.online is None:
        return ""
    if presence.online:
        return "online"
    return f"away, last seen {moment(presence.seen_ms)}" if presence.seen_ms else "away"


def laid_out(entry: Entry, width: int, day: str | None) -> list[Line]:
    """The lines of one message: time, name, text, and of one's own how far it has come. `day`: said above it."""
    lines: list[Line] = [[("class:dim", f"{day:^{max(1, width - 1)}}")]] if day is not None else []
    who = fit(one_line(entry.who), NAME_CELLS_MAX)
    margin = TIME_CHARS + 2 + get_cwidth(who) + 2
    head: Line = [
        ("class:dim", moment(entry.at_ms)[11 : 11 + TIME_CHARS] + "  "),
        ("class:own" if entry.own else "class:them", who + "  "),
    ]
    style, state = state_of(entry)
    room = max(TEXT_CELLS_MIN, width - margin)
    texts = wrap(entry.text.expandtabs(4), room)
    indent: Line = [("", " " * margin)]
    lines += [[*(head if at == 0 else indent), ("", text)] for at, text in enumerate(texts)]
    if state and get_cwidth(texts[-1]) + 2 + get_cwidth(state) <= room:
        lines[-1].append((style, "  " + state))
    elif state:
        lines += [[*indent, (style, part)] for part in wrap(state, room)]
    return lines


def state_of(entry: Entry) -> tuple[str, str]:
    """Style and words."""
    if entry.status is None:
        return "", ""
    if entry.status == "delivered":
        at = entry.changed_at_ms
        late = f" {moment(at)[11:16]}" if at is not None and at - entry.at_ms >= 60_000 else ""
        return "class:delivered", f"delivered{late}"
    words = _WORDS.get(entry.status, entry.status)
    style = "class:failed" if entry.ended else "class:waits"
    return style, f"{words}: {one_line(entry.reason)}" if entry.reason else words


def wrap(text: str, cells: int) -> list[str]:
    """Lines of at most so many cells, broken at spaces where there are some."""
    return [line for paragraph in text.split("\n") for line in _wrap_paragraph(paragraph, cells)]


def _wrap_paragraph(text: str, cells: int) -> Iterator[str]:
    """In one pass: others choose how long a text is, and it is wrapped whenever the screen is drawn."""
    start, space, used = 0, -1, 0  # of the line: where it begins, its last space, and the cells up to here
    at = 0
    while at < len(text):
        width = get_cwidth(text[at])
        if (used + width > cells or at - start >= cells * LINE_CHARS_PER_CELL) and at > start:
            space = at if text[at] == " " else space
            cut = space if space > start else at
            yield text[start:cut]
            start = _after_spaces(text, cut) if space > start else cut
            at, space, used = start, -1, 0
            continue
        if text[at] == " ":
            space = at
        used += width
        at += 1
    yield text[start:]


def _after_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] == " ":
        at += 1
    return at


def fit(text: str, cells: int) -> str:
    """So much of it as fits."""
    return text if get_cwidth(text) <= cells else next(_wrap_paragraph(text.replace(" ", "_"), cells - 1)) + "~"


def _day(entry: Entry) -> str:
    return moment(entry.at_ms)[:10]
