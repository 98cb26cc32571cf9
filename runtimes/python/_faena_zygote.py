"""An interpreter that waits as a zygote: it loads what is no user's, and each of its clones keeps a handler alive."""

import os
import sys

# A clone cannot come by it any more.
import _faena_parallel  # noqa: F401
import _faena_stream  # noqa: F401
from _faena import BEGIN, CALL, CHUNK, HEADER, answer, fill, framed, load, own_packages, system_packages

# What is let go of is written to, and a page that is written to has to be copied: nothing of this is.
KEPT = []


def rehearse(times):
    """Does what every clone will do, so that what that needs is there: memory, caches, specialised code."""
    environ, path = dict(os.environ._data), sys.path[:]
    memory = os.memfd_create("rehearsal")
    os.write(memory, b"import json\n\n\ndef handle(params, context):\n    return {'name': params['name']}\n")
    place = f"/proc/self/fd/{memory}:handle"
    begun = b"NAME=value\0" * 30 + b"\0-S\0" + sys.argv[0].encode() + b"\0" + place.encode()
    context, params = b'{"call":1}', b'{"name":"rehearsal"}'
    body = len(context).to_bytes(4, "little") + len(params).to_bytes(4, "little") + context + params
    frame = len(body).to_bytes(4, "little") + bytes((CALL, 0, 0, 0)) + bytes(8) + body
    ours, theirs = os.pipe()
    for _ in range(times):
        enter(begun, ())
        own_packages(len(sys.path))
        handle = load(sys.argv[1])
        os.write(theirs, frame)
        kind, out = answer(handle, os.read(ours, CHUNK)[HEADER:])
        os.write(theirs, framed(kind, bytes(8), out))
        os.read(ours, CHUNK)
        del sys.modules[str(memory)]
        sys.path[:] = path
    for fd in (memory, ours, theirs):
        os.close(fd)
    os.environ._data.clear()
    os.environ._data.update(environ)


def enter(begun, known):
    """Takes over the environment and the words of a process; what C programs see of the first is done already. Modules
    are forgotten that are known here and are the version's own there."""
    env, _, words = begun.partition(b"\0\0")
    os.environ._data.clear()
    os.environ._data.update([variable.split(b"=", 1) for variable in env.split(b"\0") if variable])
    words = words.decode("utf-8", "surrogateescape").split("\0")
    sys.argv[:] = words[words.index("-S") + 1 :]
    for entry in os.listdir():
        name = entry.removesuffix(".py")
        if name in known:
            for module in [module for module in sys.modules if module == name or module.startswith(name + ".")]:
                del sys.modules[module]


def hold(library):
    """Waits until it is a clone, and enters the process that it is there."""
    import ctypes
    import gc

    first = set(sys.modules)
    # Modules that hardly any handler goes without; generators of random numbers are seeded again after a fork.
    import datetime
    import json
    import re
    import time
    import traceback

    serve = ctypes.PyDLL(library).faena_serve
    serve.restype = ctypes.c_void_p
    length = ctypes.c_size_t()
    system_packages()
    rehearse(30)
    known = set(sys.modules) - first
    KEPT.extend((known, first, ctypes.CDLL(None)))
    if hasattr(KEPT[-1], "malloc_trim"):
        KEPT[-1].malloc_trim(0)
    gc.collect()
    gc.disable()
    gc.freeze()
    ctypes.pythonapi.PyOS_BeforeFork()
    begun = serve(ctypes.byref(length))
    if begun is None:
        os._exit(0)
    ctypes.pythonapi.PyOS_AfterFork_Child()
    gc.enable()
    enter(ctypes.string_at(begun, length.value), known)
    if sys.argv[1] == "--rehearse":
        rehearse(3)
        gc.collect()
    await_code(known)
    if b"TZ" in os.environ._data:
        time.tzset()


def await_code(known):
    """Waits until it is told what it is there for; where there was no code yet, that is there then."""
    header = bytearray(HEADER)
    if not fill(0, header) or header[4] != BEGIN:
        os._exit(0)
    begun = bytearray(int.from_bytes(header[:4], "little"))
    if not fill(0, begun):
        os._exit(0)
    # The folder that we stand in is covered by the code now.
    os.chdir(os.getcwd())
    enter(bytes(begun), known)
    for name, value in os.environ._data.items():
        os.putenv(name, value)
