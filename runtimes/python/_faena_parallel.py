"""Several calls at once in one process.

Most calls are over in microseconds, and giving one to a thread costs more than it takes. So the thread that reads the frames makes
the calls itself, and a second thread looks every millisecond whether it still gets on. If one call keeps it that long, the
second takes over: it reads, and gives each call to a thread of a pool, until calls are short again.
"""

import os
import sys
from _queue import SimpleQueue
from _thread import allocate_lock, start_new_thread
from time import monotonic, sleep

from _faena import answer, batches, flush, framed, send_all, stream_module

# In seconds. A call that takes longer is worth a thread, which costs some 10 µs;
SHORT = 0.0001
# and so often the one who watches looks.
TICK = 0.001
# Short calls in a row that are worth no threads, and calls on balance that are not short and are.
STREAK, SPELL = 256, 16
# Replies of one batch wait for each other this long, in seconds, and until the call has ended that was begun meanwhile.
GATHER = 0.0002
# Looks at nothing going on before the one who looks waits to be woken.
CALM = 100


class Turns:
    """Two threads take turns: one reads, the other watches, or is still in the call that it was left with."""

    def __init__(self, calls, handle, parallel):
        self.handle, self.parallel = handle, parallel
        self.batches = batches(calls, self.told)
        # Answers that are made piece by piece, by the numbers of their calls; each has its thread.
        self.streams = {}
        # Calls for threads; how many threads there are, and how many of them have nothing to do.
        self.work, self.threads, self.idle = SimpleQueue(), 0, 0
        # Guards everything below, and what is written.
        self.lock = allocate_lock()
        self.reader, self.is_watched, self.ended = 0, True, False
        # Read and not begun, in reverse; answered and not sent.
        self.waiting, self.replies = [], []
        # Calls that a reader has made itself, and whether it is in one.
        self.begun, self.is_in_call = 0, False
        # How many short calls there were in a row, and how many on balance that were not.
        self.streak, self.spell = STREAK, 0
        self.is_asleep, self.wake = False, allocate_lock()
        self.wake.acquire()

    def run(self):
        """Returns when nobody will call any more."""
        start_new_thread(self.take, (1,))
        self.take(0)

    def take(self, me):
        try:
            while not self.ended:
                if self.reader == me:
                    self.read(me)
                else:
                    self.watch(me)
        except BaseException as end:
            # Without one of the two nobody would be answered any more.
            self.die(end)

    def read(self, me):
        """Reads, until another has taken over."""
        while self.reader == me:
            if not self.waiting:
                batch = next(self.batches, None)
                if batch is None:
                    with self.lock:
                        self.ended = True
                        self.rouse()
                    return
                self.waiting = batch[::-1]
                if not batch:
                    continue
            if self.streak >= STREAK and self.is_watched:
                self.make(me)
            else:
                self.hand_out()

    def make(self, me):
        """Makes the calls that wait, one after the other, while they are short."""
        sent = now = monotonic()
        while True:
            with self.lock:
                if not self.waiting or self.streak < STREAK:
                    return
                number, body = self.waiting.pop()
                self.begun += 1
                self.is_in_call = True
                self.rouse()
            begun = now
            reply = self.reply(number, body)
            now = monotonic()
            with self.lock:
                self.replies.append(reply)
                if self.reader != me:
                    # The thread that took over has calls of its own.
                    self.send()
                    return
                self.is_in_call = False
                self.spell = self.spell + 1 if now - begun > SHORT else max(0, self.spell - 1)
                if self.spell > SPELL:
                    self.streak = self.spell = 0
                if not self.waiting or now - sent > GATHER or self.streak < STREAK:
                    self.send()
                    sent = now

    def hand_out(self):
        """Gives each call that waits to a thread."""
        while self.waiting:
            with self.lock:
                is_short_of_threads = self.idle <= self.work.qsize() and self.threads < self.parallel
                self.threads += is_short_of_threads
            self.work.put(self.waiting.pop())
            if is_short_of_threads:
                start_new_thread(self.make_others, ())

    def make_others(self):
        """A thread's life."""
        while True:
            with self.lock:
                self.idle += 1
            call = self.work.get()
            with self.lock:
                self.idle -= 1
            self.make_one(*call)

    def make_one(self, number, body):
        begun = monotonic()
        reply = self.reply(number, body)
        is_short = monotonic() - begun < SHORT
        with self.lock:
            self.replies.append(reply)
            self.send()
            self.streak = self.streak + 1 if is_short else 0

    def reply(self, number, body):
        try:
            kind, out = answer(self.handle, body, lambda: self.begin_stream(number))
        except BaseException as end:
            self.die(end)
        if self.streams:
            self.streams.pop(number, None)
        return framed(kind, number, out)

    def begin_stream(self, number):
        import threading

        changed = threading.Condition(self.lock)

        def put(kind, out):
            with self.lock:
                # Earlier replies are sent first.
                self.replies.append(framed(kind, number, out))
                self.send()

        def hear(stream, waits):
            if waits:
                with changed:
                    changed.wait_for(lambda: stream.credit > 0 or stream.stopped or self.ended)
                    stream.stopped = stream.stopped or self.ended

        stream = stream_module().Stream(put, hear)
        self.streams[number] = (stream, changed)
        return stream

    def told(self, kind, number, body):
        """Handles a frame of the worker about a stream; called by the thread that reads."""
        stream, changed = self.streams.get(number, (None, None))
        if stream:
            with changed:
                stream.told(kind, body)
                changed.notify_all()

    def die(self, end):
        """Ends the process as an exception does that nobody catches; in a thread it would end nothing. What was answered
        before stays answered."""
        code = getattr(end, "code", 1)
        try:
            with self.lock:
                self.send()
            if not isinstance(end, SystemExit):
                import traceback

                traceback.print_exception(end)
            elif isinstance(code, str):
                print(code, file=sys.stderr)
            flush()
        finally:
            os._exit(0 if code is None else code if isinstance(code, int) else 1)

    def send(self):
        """What has been answered goes out; with the lock."""
        if self.replies:
            out, self.replies = b"".join(self.replies), []
            send_all(out)

    def rouse(self):
        """Has the one who watches look again; with the lock."""
        if self.is_asleep:
            self.is_asleep = False
            self.wake.release()

    def watch(self, me):
        """Looks whether the other gets on; returns when it is our turn to read, or at the end."""
        seen, calm = -1, 0
        self.is_watched = True
        while not self.ended:
            sleep(TICK)
            with self.lock:
                if self.is_in_call and self.begun == seen:
                    self.reader, self.is_watched, self.is_in_call = me, False, False
                    self.streak = self.spell = 0
                    self.send()
                    return
                calm = 0 if self.begun != seen else calm + 1
                seen = self.begun
                self.is_asleep = is_calm = calm > CALM and not self.ended
            if is_calm:
                self.wake.acquire()
                calm = 0

