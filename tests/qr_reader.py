"""QR codes read back as a telephone reads them: from light and dark, by a decoder that has nothing to do with what drew
them. Only the drawing itself is followed here, dot by dot."""

import re
from collections.abc import Iterable
from typing import Final
from xml.etree import ElementTree

import zxingcpp

DOTS: Final = 6
"""Of the picture, along a module's side."""
DARK, LIGHT = 0, 255
_SVG: Final = "{http://www.w3.org/2000/svg}"
_STEP: Final = re.compile(r"([Mm])(-?[0-9.]+) (-?[0-9.]+)|(h)(-?[0-9.]+)")
_BLOCKS: Final = {" ": (LIGHT, LIGHT), "\u2580": (DARK, LIGHT), "\u2584": (LIGHT, DARK), "\u2588": (DARK, DARK)}


def read_svg(picture: bytes) -> str:
    """The text of a code that is drawn as black strokes of one module's width, across a white ground."""
    root = ElementTree.fromstring(picture)
    ground, code = root.iter(f"{_SVG}path")
    side = re.fullmatch(r"M0 0h(\d+)v\1h-\1z", ground.attrib["d"])
    assert side is not None and ground.attrib["fill"] == "#fff" and code.attrib["stroke"] == "#000"
    modules = [[LIGHT] * int(side[1]) for _ in range(int(side[1]))]
    steps = code.attrib["d"]
    assert not _STEP.sub("", steps).strip()
    x = y = 0.0
    for moved, x_by, y_by, _, length in _STEP.findall(steps):
        if moved == "M":
            x, y = float(x_by), float(y_by)
        elif moved == "m":
            x, y = x + float(x_by), y + float(y_by)
        else:
            for at in range(int(x), int(x) + int(length)):
                modules[int(y)][at] = DARK
            x += float(length)
    return read(modules)


def read_blocks(lines: Iterable[str]) -> str:
    """The text of a code that is drawn with two modules in a character, on a terminal whose ground is light."""
    modules: list[list[int]] = []
    for line in lines:
        upper, lower = zip(*(_BLOCKS[character] for character in line), strict=True)
        modules += [list(upper), list(lower)]
    return read(modules)


def read(modules: list[list[int]]) -> str:
    """What the decoder makes of it; dark on light alone is taken for a code, and nothing is guessed that is broken."""
    rows = [bytes(dot for dot in row for _ in range(DOTS)) for row in modules for _ in range(DOTS)]
    image = memoryview(b"".join(rows)).cast("B", (len(rows), len(rows[0])))
    (code,) = zxingcpp.read_barcodes(image, try_invert=False)
    assert code.valid and code.format == zxingcpp.BarcodeFormat.QRCode
    return str(code.text)
