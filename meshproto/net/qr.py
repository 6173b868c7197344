"""A full address as a QR code (ISO/IEC 18004): a telephone compares it without anybody reading letters aloud."""

from io import BytesIO
from typing import Final

import segno
from twisted.web.iweb import IRequest

SCALE: Final = 8
"""Pixels of a module: 33 of them, with the border, are as wide as a hand on a screen."""


def answer_qr(request: IRequest, address: str) -> bytes:
    """An SVG picture, black on white whatever the page around it."""
    picture = BytesIO()
    segno.make_qr(address).save(picture, kind="svg", scale=SCALE, dark="#000", light="#fff", title=address)
    request.setHeader(b"content-type", b"image/svg+xml")
    return picture.getvalue()
