"""A QR code for the terminal, two modules in one character: so they are square, and it fits into 80 columns."""

BLOCKS = {(False, False): " ", (True, False): "\u2580", (False, True): "\u2584", (True, True): "\u2588"}
BORDER_MODULES = 2  # four, says the standard; every scanner does with two, and it is seven lines of the screen less


def rows(text: str) -> list[str]:
    """Lines of characters; dark modules are the blocks."""
    import segno  # noqa: PLC0415 -- for the few commands that draw

    modules = [list(map(bool, row)) for row in segno.make_qr(text).matrix_iter(border=BORDER_MODULES)]
    if len(modules) % 2:
        modules.append([False] * len(modules[0]))
    return [
        "".join(BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(modules[::2], modules[1::2], strict=True)
    ]
