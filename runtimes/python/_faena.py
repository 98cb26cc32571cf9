"""Keeps a Python handler alive.

Calls come in frames on standard input, and answers go to a descriptor (docs/reference/handler-protocol.md). What a start
imports is paid at every cold start, so this file imports what every interpreter has loaded already, and the rest late.
"""

import os
import sys

HEADER, LENGTHS = 16, 8
ANSWERS = 3
CALL, BEGIN, CREDIT, STOP = 1, 2, 3, 4
READY, RESULT, EXCEPTION, ENDED, REPLY, STREAM, PIECE, DONE = 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
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
    # An interpreter of a virtual environment; -S keeps it from looking for that itself.
    around = os.path.dirname(os.path.dirname(sys.executable or ""))
    if os.path.exists(f"{around}/pyvenv.cfg"):
        packages((f"{around}/lib/{VERSION}/site-packages",))
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
        raise TypeError

    def dumps(value):
        encode = make_encoder({}, refuse, encode_basestring, None, ":", ",", False, False, False)
        return "".join(encode(value, 0))

    return loads, dumps


loads, dumps = json_functions()


def misplaced(value, place="result", above=()):
    """What in a value JSON cannot express, and where; None where all is well."""
    if value is None or isinstance(value, (bool, int)):
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{place} is a str that is no Unicode text"
        return None
    if isinstance(value, float):
        return None if value - value == 0 else f"{place} is {value!r}"
    if any(value is other for other in above):
        return f"{place} is a {type(value).__name__} that contains itself"
    if isinstance(value, (list, tuple)):
        inside = ((f"{place}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, dict):
        for key in value:
            if not (key is None or isinstance(key, (str, int, float, bool))):
                return f"{place} has a key that is a {type(key).__name__}"
        inside = ((f"{place}[{key!r}]", item) for key, item in value.items())
    else:
        return f"{place} is a {type(value).__name__}"
    found = (misplaced(item, inner, (*above, value)) for inner, item in inside)
    return next((text for text in found if text), None)


class Request:
    """The HTTP request that a call is."""

    __slots__ = ("method", "path", "query", "headers")

    def __init__(self, method, path, query, headers):
        self.method, self.path, self.query = method, path, query
        # By their names in lower case.
        self.headers = headers


class Response:
    """A result with a status and headers; `body` is whatever a handler may return."""

    __slots__ = ("body", "status", "headers")

    def __init__(self, body=b"", status=200, headers=None):
        self.body, self.status, self.headers = body, status, headers or {}


class Context:
    """What a call knows of itself; read from its JSON when it is first asked for."""

    __slots__ = ("_text", "_values", "_params", "_body")

    def __init__(self, text, params, body):
        self._text, self._values, self._params, self._body = text, None, params, body

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

    # The names that functions written for AWS Lambda use.
    aws_request_id = property(lambda self: str(self.call), doc="the call's number, as a text")
    function_name = function
    function_version = property(lambda self: str(self.version), doc="the function's version, as a text")
    memory_limit_in_mb = property(lambda self: str(self._get("memoryMb")), doc="megabytes of memory, as a text")

    @property
    def request(self):
        """The HTTP request; None for a call that did not come as one."""
        request = self._get("request")
        return request and Request(**request)

    @property
    def body(self):
        """The request's body, as bytes; None where it is empty or there is no request."""
        return self._params if self._get("bodyIsParams") else self._body

    def remaining_ms(self):
        """How long the attempt may still take."""
        import time

        return max(0, self.deadline_ms - int(time.time() * 1000))

    get_remaining_time_in_millis = remaining_ms


class Offer:
    """Finds the module `faena`, where the user's code brings none of that name."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "faena":
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, Offer)

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        module.Response = Response


class Builtin:
    """A name that -S leaves out of the builtins, made when it is first used."""

    def __init__(self, name):
        self.name = name

    def made(self):
        import _sitebuiltins

        if self.name == "help":
            return _sitebuiltins._Helper()
        return _sitebuiltins._Printer(self.name, f"Type help() for interactive help, see docs.python.org for the {self.name}.")

    def __repr__(self):
        return repr(self.made())

    def __call__(self, *arguments, **named):
        return self.made()(*arguments, **named)


def leave(code=None):
    """exit() and quit()."""
    raise SystemExit(code)


def add_builtins():
    """What every Python script finds."""
    import builtins

    builtins.exit = builtins.quit = leave
    for name in ("copyright", "credits", "license", "help"):
        setattr(builtins, name, Builtin(name))


def package_of(folder, here):
    """The package that a folder below the code is, so that relative imports work in it; "" where it is none."""
    names = os.path.relpath(folder, here).split(os.sep)
    if names == ["."] or not all(name.isidentifier() for name in names):
        return ""
    # A folder without __init__.py never goes before a module of Python's own.
    if names[0] in sys.modules or (
        names[0] in getattr(sys, "stdlib_module_names", ())
        and not os.path.exists(os.path.join(here, names[0], "__init__.py"))
    ):
        return ""
    import importlib

    package = ".".join(names)
    importlib.import_module(package)
    return package


def module_of(file, package):
    """A module of its source, as the import system would make it but for looking for it."""
    from _frozen_importlib import ModuleSpec
    from _frozen_importlib_external import SourceFileLoader

    name = os.path.basename(file).removesuffix(".py")
    name = f"{package}.{name}" if package else name
    spec = ModuleSpec(name, SourceFileLoader(name, file), origin=file)
    spec._set_fileattr = True
    module = type(sys)(name)
    module.__file__, module.__spec__, module.__loader__, module.__package__ = file, spec, spec.loader, package
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    source = os.read(fd, os.fstat(fd).st_size + 1)
    os.close(fd)
    sys.modules[name] = module
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    return module


def load(place):
    """The user's function, called with params and context."""
    file, _, name = place.rpartition(":")
    here = os.getcwd()
    file = os.path.join(here, file)
    folder = os.path.dirname(file)
    sys.path[0] = here
    package = ""
    if folder != here:
        package = package_of(folder, here)
        sys.path.insert(0, folder)
    module = module_of(file, package)
    try:
        handle = getattr(module, name)
    except AttributeError:
        sys.exit(f"{place} is not there: the file has no {name}; faena.toml names another with handler = \"FILE:NAME\"")
    return taking(handle)


def taking(handle):
    """The function as it is called, with params and context, whatever number of these it takes."""
    inner = handle
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    code = getattr(inner, "__code__", None)
    if code is None or type(inner) is not type(taking):
        import inspect

        try:
            kinds = [parameter.kind for parameter in inspect.signature(handle).parameters.values()]
        except (TypeError, ValueError):
            return handle
        takes = 2 if inspect.Parameter.VAR_POSITIONAL in kinds else sum(kind <= 1 for kind in kinds)
    else:
        VARARGS = 4
        takes = 2 if code.co_flags & VARARGS else code.co_argcount
    if takes >= 2:
        return handle
    if takes == 1:
        return lambda params, context: handle(params)
    return lambda params, context: handle()


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


class Pieces(Exception):
    """A result that is made piece by piece, and the head that its answer has, if any."""

    def __init__(self, result, head=None):
        self.result, self.head = result, head


def stream_module():
    """The module for streamed answers, loaded when the first one begins."""
    module = sys.modules.get("_faena_stream")
    if module is None:
        # Our folder has left sys.path.
        from importlib.util import module_from_spec, spec_from_file_location

        spec = spec_from_file_location("_faena_stream", os.path.join(os.path.dirname(__file__), "_faena_stream.py"))
        module = sys.modules["_faena_stream"] = module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def answer(handle, frame, begin_stream=None):
    """Answers one call; returns the kind and the payload of the last frame. Generators are streamed by `begin_stream`; without
    it they are joined."""
    first = LENGTHS + int.from_bytes(frame[:4], "little")
    end = first + int.from_bytes(frame[4:LENGTHS], "little")
    try:
        text = frame[first:end]
        params = loads(str(text, "utf-8"))
        result = handle(params, Context(frame[LENGTHS:first], text, frame[end:] or None))
        if hasattr(result, "__await__"):
            result = settle(result)
        if type(result) is Response:
            kind, out = REPLY, reply(result)
        else:
            kind, out = RESULT, written(result)
    except Pieces as made:
        kind, out = answer_in_pieces(made, begin_stream)
    except Exception as error:
        kind, out = EXCEPTION, exception(error)
    flush()
    return kind, out


def answer_in_pieces(made, begin_stream):
    streams = stream_module()
    try:
        if begin_stream:
            return streams.run(made.result, made.head, begin_stream())
        out = streams.whole(made.result)
        return (RESULT, out) if made.head is None else (REPLY, len(made.head).to_bytes(4, "little") + made.head + out)
    except Exception as error:
        # The failed conversion to JSON is ours, not the user's.
        error.__context__ = None
        return EXCEPTION, exception(error)


def exception(error):
    """The payload of an exception: its message and its traceback."""
    message = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
    return len(message).to_bytes(4, "little") + message + origin(error).encode("utf-8", "replace")


def written(result):
    """A result as bytes: bytes and texts as they are, anything else as JSON."""
    if isinstance(result, str):
        try:
            return str.encode(result)
        except UnicodeEncodeError:
            raise TypeError("the result is a str that is no Unicode text") from None
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    try:
        return dumps(result).encode()
    except (TypeError, ValueError, RecursionError) as error:
        if stream_module().is_made_in_pieces(result):
            raise Pieces(result) from None
        found = misplaced(result)
        if found is None:
            raise
        raise TypeError(f"the result cannot be written as JSON: {found}") from None


def reply(response):
    """A Response as it travels."""
    body, status, headers = response.body, response.status, response.headers
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"the status of a Response is a number from 200 to 599, not {status!r}")
    pairs = headers.items() if hasattr(headers, "items") else headers
    head = dumps({"status": int(status), "headers": [[str(name), str(value)] for name, value in pairs]}).encode()
    try:
        return len(head).to_bytes(4, "little") + head + written(b"" if body is None else body)
    except Pieces as made:
        raise Pieces(made.result, head) from None


def origin(error):
    """Where an exception came from, without the frames of this shim."""
    import traceback

    whole = traceback.TracebackException.from_exception(error)
    ours, seen, left = os.path.dirname(__file__), set(), [whole]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        kept = [frame for frame in one.stack if os.path.dirname(frame.filename) != ours]
        # What runs an `async def` is not the user's either.
        while len(kept) > 1 and kept[0].filename.endswith(("/asyncio/base_events.py", "/asyncio/runners.py")):
            del kept[0]
        one.stack = traceback.StackSummary.from_list(kept)
        left += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]
    return "".join(whole.format())


def framed(kind, number, body):
    return len(body).to_bytes(4, "little") + bytes((kind, 0, 0, 0)) + number + body


def send(kind, number, body):
    send_all(framed(kind, number, body))


def send_all(out):
    written = os.write(ANSWERS, out)
    while written < len(out):
        out = out[written:]
        written = os.write(ANSWERS, out)


def batches(calls, told):
    """Yields batches of calls (number and body) until there are no more. Frames of other kinds go to `told`; a batch may be empty
    then."""
    read, pending = os.read, b""
    while True:
        chunk = read(calls, CHUNK)
        if not chunk:
            return
        pending = pending + chunk if pending else chunk
        batch, at, is_told = [], 0, False
        while len(pending) - at >= HEADER:
            end = at + HEADER + int.from_bytes(pending[at : at + 4], "little")
            if len(pending) < end:
                if batch or is_told:
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
            if pending[at + 4] == CALL:
                batch.append((pending[at + 8 : at + HEADER], pending[at + HEADER : end]))
            else:
                told(pending[at + 4], pending[at + 8 : at + HEADER], pending[at + HEADER : end])
                is_told = True
            at = end
        pending = pending[at:]
        if batch or is_told:
            yield batch


class Calls:
    """Calls one after the other, and the stream that the one under way may be."""

    def __init__(self, calls):
        self.calls, self.frames, self.number, self.stream = calls, batches(calls, self.told), None, None

    def told(self, kind, number, body):
        if self.stream and number == self.number:
            self.stream.told(kind, body)

    def begin_stream(self):
        self.stream = stream_module().Stream(lambda kind, out: send(kind, self.number, out), self.hear)
        return self.stream

    def hear(self, stream, waits):
        """Reads frames of the worker: they belong to the stream while a call is under way."""
        if not waits:
            import select

            poll = select.poll()
            poll.register(self.calls, select.POLLIN)
            if not poll.poll(0):
                return
        if next(self.frames, None) is None:
            stream.stopped = True

    def run(self, handle):
        for batch in self.frames:
            for self.number, body in batch:
                kind, out = answer(handle, body, self.begin_stream)
                self.stream = None
                send(kind, self.number, out)


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
    # The code is mounted there again between two calls.
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
            # A process that has a pipe can open it by its name and write to it: what comes next is read by our parent.
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
    """What was printed goes out. A stream that the function has closed or replaced is its own business."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def begin(place):
    """Loads the user's code. What goes wrong there is told without our frames."""
    # Children that multiprocessing spawns import no main program: ours is none of the user's.
    main = sys.modules["__main__"]
    main.__spec__ = None
    if hasattr(main, "__file__"):
        del main.__file__
    sys.meta_path.append(Offer)
    add_builtins()
    try:
        return load(place)
    except Exception as error:
        sys.stderr.write(origin(error))
        sys.stderr.flush()
        sys.exit(1)


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
    handle = begin(sys.argv[1])
    if os.environ.get("FAENA_FORK") == "1":
        return apart(calls, handle)
    turns = Turns(calls, handle, parallel) if parallel > 1 else None
    send(READY, bytes(8), b"")
    if turns:
        return turns.run()
    Calls(calls).run(handle)
