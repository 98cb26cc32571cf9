"""Answers that are made piece by piece: each piece is sent against credit, which the worker gives back as its client reads."""

from _faena import CREDIT, DONE, PIECE, STREAM, dumps, settle

# The credit at the beginning, the largest piece, and the least cost of a piece, in bytes.
WINDOW, LARGEST, LEAST = 64 * 1024, 16 * 1024, 64


class Stopped(Exception):
    """The reader of the answer is gone."""


class Stream:
    """One streamed answer. `send` sends a frame; `hear` reads frames of the worker, and may wait for one."""

    def __init__(self, send, hear):
        self.send, self.hear = send, hear
        self.credit, self.stopped = WINDOW, False

    def told(self, kind, body):
        """Handles a frame of the worker."""
        if kind == CREDIT:
            self.credit += int.from_bytes(body, "little")
        else:
            self.stopped = True

    def put(self, data):
        """Sends bytes, as soon as there is credit for them."""
        for start in range(0, len(data), LARGEST):
            piece = data[start : start + LARGEST]
            self.hear(self, False)
            while self.credit <= 0 and not self.stopped:
                self.hear(self, True)
            if self.stopped:
                raise Stopped
            self.credit -= max(len(piece), LEAST)
            self.send(PIECE, piece)


def is_made_in_pieces(result):
    """Whether it is a generator, or anything else that is iterated once."""
    return hasattr(result, "__next__") or hasattr(result, "__anext__")


def as_bytes(piece):
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    raise TypeError(f"a generator yields str or bytes, and this one yielded a {type(piece).__name__}")


def pieces(result):
    """The pieces of a generator or an async generator, which is closed in the end."""
    if hasattr(result, "__next__"):
        try:
            yield from result
        finally:
            if hasattr(result, "close"):
                result.close()
        return
    try:
        while True:
            try:
                yield settle(result.__anext__())
            except StopAsyncIteration:
                return
    finally:
        if hasattr(result, "aclose"):
            settle(result.aclose())


def whole(result):
    """All of it at once."""
    return b"".join(as_bytes(piece) for piece in pieces(result))


def kind_of(piece):
    """The head of an answer whose first piece this is."""
    kind = "text/plain; charset=utf-8" if isinstance(piece, str) else "application/octet-stream"
    return dumps({"status": 200, "headers": [["content-type", kind]]}).encode()


def run(result, head, stream):
    """Streams an answer; returns the kind and the payload of its last frame."""
    made, has_begun = pieces(result), False
    try:
        for piece in made:
            data = as_bytes(piece)
            if not has_begun:
                stream.send(STREAM, head or kind_of(piece))
                has_begun = True
            stream.put(data)
        if not has_begun:
            stream.send(STREAM, head or b'{"status":200,"headers":[]}')
    except Stopped:
        pass
    finally:
        made.close()
    return DONE, b""
