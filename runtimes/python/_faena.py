"""Keeps a Python handler alive.

Calls come in frames on standard input, and answers go to a descriptor (docs/reference/handler-protocol.md). What a start
imports is paid at every cold start, so this file imports what every interpreter has loaded already, and the rest late.
"""

import os
import sys

HEADER, LENGTHS = 16, 8
ANSWERS = 3
CALL, BEGIN, READY, RESULT, EXCEPTION, ENDED = 1, 2, 0x80, 0x81, 0x82, 0x83
# Read at once. From 128 KiB on, glibc gives each piece of memory fresh pages, and takes them back after it.
CHUNK = 64 * 1024


VERSION = "python%d.%d" % sys.version_info[:2]


def packages(places):
    """What -S leaves out: folders where packages are installed, with their .pth files where there are any."""
    for place in places:
        try:
            names = os.listdir(place)
        except OSError:
            continue
        if any(name.endswith(".pth") for name in names):
            import site

            site.addsitedir(place)
        else:
            sys.path.append(place)


def system_packages():
    """Those of the system."""
    packages(
        (
            f"/usr/local/lib/{VERSION}/dist-packages",
            "/usr/lib/python3/dist-packages",
            f"{sys.prefix}/lib/{VERSION}/site-packages",
        )
    )


def own_packages(first):
    """Those that were built for the function; they go before the system's, which begin at an index of sys.path."""
    base = os.environ.get("PYTHONUSERBASE")
    systems = sys.path[first:]
    del sys.path[first:]
    if base:
        packages((f"{base}/lib/{VERSION}/site-packages",))
    sys.path += [place for place in systems if place not in sys.path]


def json_functions():
    """JSON without the modules that json needs only for its options; the whole of it where an interpreter has no such."""
    try:
        from _json import encode_basestring, make_encoder, make_scanner
    except ImportError:
        import json

        return json.loads, lambda value: json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    class Rules:
        strict = True
        object_hook = object_pairs_hook = None
        parse_float, parse_int = float, int
        parse_constant = float
        memo = {}

    scan = make_scanner(Rules)

    def loads(text):
        return scan(text.strip(" \t\r\n"), 0)[0]

    def refuse(value):
        raise TypeError(f"a result of the type {type(value).__name__} cannot be written as JSON")

    def dumps(value):
        encode = make_encoder({}, refuse, encode_basestring, None, ":", ",", False, False, False)
        return "".join(encode(value, 0))

    return loads, dumps


loads, dumps = json_functions()


class Context:
    """What a call knows of itself; read from its JSON when it is first asked for."""

    __slots__ = ("_text", "_values", "body")

    def __init__(self, text, body):
        self._text, self._values = text, None
        # The body of a request that is no JSON; None otherwise.
        self.body = body

    def _get(self, name):
        if self._values is None:
            self._values = loads(str(self._text, "utf-8"))
        return self._values.get(name)

    call = property(lambda self: self._get("call"), doc="the call's number")
    function = property(lambda self: self._get("function"), doc="the function's name")
    version = property(lambda self: self._get("version"), doc="the function's version")
    attempt = property(lambda self: self._get("attempt"), doc="from 1; redeliveries count")
    deadline_ms = property(lambda self: self._get("deadlineMs"), doc="when the attempt has to end, in Unix milliseconds")
    traceparent = property(lambda self: self._get("traceparent"), doc="the W3C trace context")

    def remaining_ms(self):
        """How long the attempt may still take."""
        import time

        return max(0, self.deadline_ms - int(time.time() * 1000))


def module_of(file):
    """A module of its source, as the import system would make it but for looking for it."""
    from _frozen_importlib import ModuleSpec
    from _frozen_importlib_external import SourceFileLoader

    name = os.path.basename(file).removesuffix(".py")
    spec = ModuleSpec(name, SourceFileLoader(name, file), origin=file)
    spec._set_fileattr = True
    module = type(sys)(name)
    module.__file__, module.__spec__, module.__loader__, module.__package__ = file, spec, spec.loader, ""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    source = os.read(fd, os.fstat(fd).st_size + 1)
    os.close(fd)
    sys.modules[name] = module
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    return module


def load(place):
    """The user's function."""
    file, _, name = place.rpartition(":")
    here = os.getcwd()
    file = os.path.join(here, file)
    folder = os.path.dirname(file)
    sys.path[0] = here
    if folder != here:
        sys.path.insert(0, folder)
    module = module_of(file)
    try:
        return getattr(module, name)
    except AttributeError:
        sys.exit(f"{place} is not there: the file has no {name}; faena.toml names another with handler = \"FILE:NAME\"")


def settler():
    """What runs an `async def` to its result, on a loop of the thread's own."""
    loops = {}

    def settle(awaitable):
        import asyncio
        import threading

        thread = threading.get_ident()
        if thread not in loops:
            loops[thread] = asyncio.new_event_loop()
            asyncio.set_event_loop(loops[thread])
        return loops[thread].run_until_complete(awaitable)

    return settle


settle = settler()


def with_body(params, body):
    """Params of a request whose body is no JSON."""
    from binascii import b2a_base64

    params["bodyBase64"] = str(b2a_base64(body, newline=False), "ascii")


def answer(handle, frame):
    """One call; the kind of its answer's frame and what that carries."""
    first = LENGTHS + int.from_bytes(frame[:4], "little")
    end = first + int.from_bytes(frame[4:LENGTHS], "little")
    try:
        params, body = loads(str(frame[first:end], "utf-8")), None
        if end < len(frame):
            body = frame[end:]
            with_body(params, body)
        result = handle(params, Context(frame[LENGTHS:first], body))
        if hasattr(result, "__await__"):
            result = settle(result)
        if type(result) is not str:
            result = dumps(result)
        kind, out = RESULT, result.encode()
    except Exception as error:
        import traceback

        first = error.__traceback__.tb_next if error.__traceback__ else None
        origin = "".join(traceback.format_exception(type(error), error, first)).encode("utf-8", "replace")
        message = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
        kind, out = EXCEPTION, len(message).to_bytes(4, "little") + message + origin
    flush()
    return kind, out


def framed(kind, number, body):
    return len(body).to_bytes(4, "little") + bytes((kind, 0, 0, 0)) + number + body


def send(kind, number, body):
    send_all(framed(kind, number, body))


def send_all(out):
    written = os.write(ANSWERS, out)
    while written < len(out):
        out = out[written:]
        written = os.write(ANSWERS, out)


def batches(calls):
    """Frames, number and body of each, as many as came at once, until there are no more."""
    read, pending = os.read, b""
    while True:
        chunk = read(calls, CHUNK)
        if not chunk:
            return
        pending = pending + chunk if pending else chunk
        batch, at = [], 0
        while len(pending) - at >= HEADER:
            end = at + HEADER + int.from_bytes(pending[at : at + 4], "little")
            if len(pending) < end:
                if batch:
                    break
                # A large body is read in one piece: joining its parts one by one would copy them over and over.
                parts, missing = [pending], end - len(pending)
                while missing > 0:
                    part = read(calls, missing)
                    if not part:
                        return
                    parts.append(part)
                    missing -= len(part)
                pending = b"".join(parts)
            batch.append((pending[at + 8 : at + HEADER], pending[at + HEADER : end]))
            at = end
        pending = pending[at:]
        if batch:
            yield batch


def apart(calls, handle):
    """Serves until there are no more calls, each in a process of its own: a fork of this one, which nobody else may look into."""
    try:
        import ctypes
        from fcntl import F_GETFL, F_SETFL, fcntl

        F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
        set_dumpable = ctypes.CDLL(None).prctl
    except (ImportError, AttributeError):
        sys.exit('reuse = "fork" needs the modules ctypes and fcntl, which this interpreter does not have')
    PR_SET_DUMPABLE = 4
    # What a call's process shares with us, and may change.
    shared = [(fd, fcntl(fd, F_GETFL), fcntl(fd, F_GETPIPE_SZ)) for fd in (ANSWERS, 1, 2)]

    def put_right():
        for fd, flags, size in shared:
            fcntl(fd, F_SETFL, flags)
            if fcntl(fd, F_GETPIPE_SZ) < size:
                fcntl(fd, F_SETPIPE_SZ, size)

    here = os.getcwd()
    # What lies there is laid anew between two calls.
    os.chdir("/")
    if set_dumpable(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit('reuse = "fork": this process cannot be closed to others')
    flush()
    send(READY, (1).to_bytes(8, "little"), b"")
    header = bytearray(HEADER)
    while fill(calls, header):
        # What this process knew of a call every later one would inherit: it is here alone, and is wiped.
        body = bytearray(int.from_bytes(header[:4], "little"))
        if not fill(calls, body):
            return
        # Whatever the last call left behind is dead by now.
        put_right()
        child = os.fork()
        if child == 0:
            # Whoever has a pipe may have it by its name, and write to it: what comes next is read by our parent.
            os.close(calls)
            set_dumpable(PR_SET_DUMPABLE, 1, 0, 0, 0)
            os.chdir(here)
            code = 0
            try:
                kind, out = answer(handle, bytes(body))
                send(kind, bytes(header[8:]), out)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            flush()
            os._exit(code)
        body[:] = bytes(len(body))
        _, status = os.waitpid(child, 0)
        put_right()
        send(ENDED, bytes(header[8:]), status.to_bytes(4, "little"))


def fill(fd, buffer):
    """Reads as much as there is room for; false where there is no more."""
    room = memoryview(buffer)
    while room:
        read = os.readv(fd, [room])
        if not read:
            return False
        room = room[read:]
    return True


def flush():
    sys.stdout.flush()
    sys.stderr.flush()


def main():
    # What is written into an instance goes with it.
    sys.dont_write_bytecode = True
    standard = len(sys.path)
    if sys.argv[1] == "--hold":
        import _faena_zygote

        _faena_zygote.hold(sys.argv[2])
    else:
        system_packages()
    own_packages(standard)
    calls = os.dup(0)
    os.set_inheritable(ANSWERS, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    parallel = int(os.environ.get("FAENA_PARALLEL", "1"))
    if parallel > 1:
        # Our modules are found no more once the user's are.
        from _faena_parallel import Turns
    handle = load(sys.argv[1])
    if os.environ.get("FAENA_FORK") == "1":
        return apart(calls, handle)
    turns = Turns(calls, handle, parallel) if parallel > 1 else None
    send(READY, bytes(8), b"")
    if turns:
        return turns.run()
    for batch in batches(calls):
        for number, body in batch:
            kind, out = answer(handle, body)
            send(kind, number, out)
