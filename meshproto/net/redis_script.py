"""What the store carries out in one step: compare, set, tell."""

import hashlib
from typing import Final

from meshproto.net.redis_lane import packed

SWAP: Final = b"""\
local now = redis.call('GET', KEYS[1])
if (now and '=' .. now or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], string.sub(ARGV[2], 2), 'PX', ARGV[3])
end
redis.call('PUBLISH', KEYS[1], '')
return 1
"""
"""A value stands behind an equals sign, no value is nothing at all."""

_SHA: Final = hashlib.sha1(SWAP, usedforsecurity=False).hexdigest().encode()
_BY_SHA: Final = packed(b"EVALSHA", _SHA).partition(b"\r\n")[2]
_WHOLE: Final = packed(b"EVAL", SWAP).partition(b"\r\n")[2]


def swap(key: bytes, before: bytes | None, after: bytes | None, ttl_ms: int) -> bytes:
    return packed(b"EVALSHA", _SHA, b"1", key, _argument(before), _argument(after), b"%d" % ttl_ms)


def whole(command: bytes) -> bytes:
    """The same for a node that does not know the script yet, which it does from then on."""
    return command.replace(_BY_SHA, _WHOLE, 1)


def _argument(value: bytes | None) -> bytes:
    return b"" if value is None else b"=" + value
