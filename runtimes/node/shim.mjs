// Keeps a Node handler alive: node shim.mjs FILE:NAME
//
// Calls come in frames on standard input, and answers go to a descriptor (docs/reference/handler-protocol.md).

import { closeSync, openSync } from "node:fs";
import { Socket } from "node:net";
import { resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { inspect } from "node:util";

const HEADER = 16;
const LENGTHS = 8;
const [CALL, CREDIT] = [1, 3];
const [READY, RESULT, EXCEPTION, REPLY, STREAM, PIECE, DONE] = [0x80, 0x81, 0x82, 0x84, 0x85, 0x86, 0x87];
// The credit at the beginning, the largest piece, and the least cost of a piece, in bytes.
const [WINDOW, LARGEST, LEAST] = [64 * 1024, 16 * 1024, 64];
const OURS = fileURLToPath(import.meta.url);

/** Takes the calls' pipe away from standard input, which is empty for the function and for all that it starts. */
function takeCalls() {
  const calls = openSync("/proc/self/fd/0", "r");
  closeSync(0);
  // The lowest free descriptor is taken.
  openSync("/dev/null", "r");
  return new Socket({ fd: calls, readable: true, writable: false });
}

const calls = takeCalls();
const answers = new Socket({ fd: 3, readable: false, writable: true });

function send(kind, id, body) {
  const header = Buffer.alloc(HEADER);
  header.writeUInt32LE(body.length, 0);
  header[4] = kind;
  header.writeBigUInt64LE(id, 8);
  answers.write(Buffer.concat([header, body]));
}

/** A text or bytes behind their length. */
function measured(head, body) {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(head.length, 0);
  return Buffer.concat([length, head, body]);
}

/** What a call knows of itself; read from its JSON when it is first asked for. */
class Context {
  #text;
  #values;
  #params;
  #body;
  #aborted;
  #onStop;

  constructor(text, params, body) {
    this.#text = text;
    this.#params = params;
    this.#body = body;
  }

  #get(name) {
    this.#values ??= JSON.parse(this.#text.toString());
    return this.#values[name];
  }

  get call() { return this.#get("call"); }
  get function() { return this.#get("function"); }
  get version() { return this.#get("version"); }
  get attempt() { return this.#get("attempt"); }
  get deadlineMs() { return this.#get("deadlineMs"); }
  get traceparent() { return this.#get("traceparent"); }

  /** The HTTP request: method, path, query, and headers by their names in lower case. */
  get request() { return this.#get("request"); }
  /** The request's body; none where it is empty or there is no request. */
  get body() { return this.#get("bodyIsParams") ? this.#params : this.#body; }

  // The names that functions written for AWS Lambda use.
  get awsRequestId() { return String(this.call); }
  get functionName() { return this.function; }
  get functionVersion() { return String(this.version); }
  get memoryLimitInMB() { return String(this.#get("memoryMb")); }

  /** Aborted when nobody reads an answer any more that is made piece by piece. */
  get signal() {
    this.#aborted ??= new AbortController();
    return this.#aborted.signal;
  }

  onStop(act) { this.#onStop = act; }

  stop() {
    this.#aborted?.abort();
    this.#onStop?.();
  }

  /** How long the attempt may still take. */
  remainingMs() {
    return Math.max(0, this.deadlineMs - Date.now());
  }

  getRemainingTimeInMillis() {
    return this.remainingMs();
  }
}

/** What in a value JSON cannot express, or would silently change, and where; nothing where all is well. */
function misplaced(value, place, above) {
  if (typeof value === "bigint") return `${place} is a BigInt`;
  if (typeof value === "function" || typeof value === "symbol") return `${place} is a ${typeof value}`;
  if (typeof value !== "object" || value === null) return undefined;
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer || value instanceof Map || value instanceof Set || value instanceof Promise) {
    return `${place} is a ${value.constructor?.name ?? "value"}`;
  }
  if (typeof value.toJSON === "function") return undefined;
  if (above.includes(value)) return `${place} contains itself`;
  const inside = [...above, value];
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index += 1) {
      const found = misplaced(value[index], `${place}[${index}]`, inside);
      if (found) return found;
    }
    return undefined;
  }
  for (const key of Object.keys(value)) {
    // JSON leaves functions out of objects, as programs expect.
    if (typeof value[key] === "function") continue;
    const found = misplaced(value[key], `${place}.${key}`, inside);
    if (found) return found;
  }
  return undefined;
}

/** A result as bytes: texts and bytes as they are, anything else as JSON. */
function written(result) {
  if (typeof result === "string") return Buffer.from(result);
  if (ArrayBuffer.isView(result)) return Buffer.from(result.buffer, result.byteOffset, result.byteLength);
  if (result instanceof ArrayBuffer) return Buffer.from(result);
  const found = misplaced(result, "result", []);
  if (found) throw new TypeError(`the result cannot be written as JSON: ${found}`);
  return Buffer.from(JSON.stringify(result) ?? "null");
}

/** What a thrown value says of itself: a message, and where it came from without the frames of this shim. */
function told(error) {
  if (error instanceof Error) {
    const lines = String(error.stack ?? error).split("\n").filter((line) => !line.includes(OURS));
    return [String(error), lines.join("\n")];
  }
  if (typeof error?.message === "string") {
    return [`${error.name ?? error.code ?? "Error"}: ${error.message}`, inspect(error)];
  }
  return [typeof error === "string" ? error : inspect(error), inspect(error)];
}

/** An answer that is sent while it is made, against credit that the worker gives back as its client reads. */
class Stream {
  credit = WINDOW;
  stopped = false;
  #wake = () => {};

  /** `stop` is called when nobody reads any more: what waits for something else than its reader can end then. */
  constructor(id, stop) {
    this.id = id;
    this.stop = stop;
  }

  /** Handles a frame of the worker. */
  told(kind, body) {
    if (kind === CREDIT) this.credit += body.readUInt32LE(0);
    else {
      this.stopped = true;
      this.stop();
    }
    this.#wake();
  }

  /** Sends bytes as soon as there is credit for them; false once nobody reads the answer any more. */
  async put(bytes) {
    for (let start = 0; start < bytes.length; start += LARGEST) {
      while (this.credit <= 0 && !this.stopped) {
        await new Promise((wake) => { this.#wake = wake; });
      }
      if (this.stopped) return false;
      const piece = bytes.subarray(start, start + LARGEST);
      this.credit -= Math.max(piece.length, LEAST);
      send(PIECE, this.id, piece);
    }
    return !this.stopped;
  }
}

/** The streams that are being made, by the ids of their calls. */
const streams = new Map();

/** Whether a result is to be streamed: a stream, an asynchronous iterator or a generator. */
function isMadeInPieces(result) {
  if (typeof result !== "object" || result === null) return false;
  return typeof result[Symbol.asyncIterator] === "function"
    || (typeof result.next === "function" && typeof result[Symbol.iterator] === "function");
}

function pieceBytes(piece) {
  if (typeof piece === "string") return Buffer.from(piece);
  if (ArrayBuffer.isView(piece)) return Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength);
  if (piece instanceof ArrayBuffer) return Buffer.from(piece);
  throw new TypeError(`a stream has texts and bytes, and this one has a ${piece?.constructor?.name ?? typeof piece}`);
}

const headOf = (status, headers) => Buffer.from(JSON.stringify({ status, headers }));

/** Sends an answer while it is made. Where it has no head its first piece tells its type. */
async function stream(id, made, context, head) {
  const out = new Stream(id, () => context.stop());
  streams.set(id, out);
  try {
    let hasBegun = false;
    for await (const piece of made) {
      const bytes = pieceBytes(piece);
      if (!hasBegun) {
        const type = typeof piece === "string" ? "text/plain; charset=utf-8" : "application/octet-stream";
        send(STREAM, id, head ?? headOf(200, [["content-type", type]]));
        hasBegun = true;
      }
      // Leaving the loop early has the iterator clean up.
      if (!(await out.put(bytes))) break;
    }
    if (!hasBegun) send(STREAM, id, head ?? headOf(200, []));
    send(DONE, id, Buffer.alloc(0));
  } finally {
    streams.delete(id);
  }
}

/** The pieces of a web stream, which is cancelled where nobody reads on. */
async function* piecesOf(reader, context, first, second) {
  context.onStop(() => reader.cancel().catch(() => {}));
  try {
    if (first) yield first.value;
    for (let next = await (second ?? reader.read()); !next.done; next = await reader.read()) yield next.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Sends a web Response: whole where its body is there at once, else while it is made. */
async function respond(id, response, context) {
  const head = headOf(response.status, [...response.headers]);
  const reader = response.body?.getReader();
  const first = (await reader?.read()) ?? { done: true };
  if (first.done) return send(REPLY, id, measured(head, Buffer.alloc(0)));
  const second = reader.read();
  const soon = await Promise.race([second, new Promise((go) => setImmediate(go, null))]);
  if (soon?.done) return send(REPLY, id, measured(head, pieceBytes(first.value)));
  return stream(id, piecesOf(reader, context, first, second), context, head);
}

async function answer(handle, id, frame) {
  const first = LENGTHS + frame.readUInt32LE(0);
  const end = first + frame.readUInt32LE(4);
  try {
    const text = frame.subarray(first, end);
    const params = JSON.parse(text.toString());
    const body = end < frame.length ? frame.subarray(end) : undefined;
    const context = new Context(frame.subarray(LENGTHS, first), text, body);
    // A parameter with a default does not count, and is no place for the context.
    const result = await (handle.length === 1 ? handle(params) : handle(params, context));
    if (result instanceof Response) await respond(id, result, context);
    else if (result instanceof ReadableStream) await stream(id, piecesOf(result.getReader(), context), context);
    else if (isMadeInPieces(result)) await stream(id, result, context);
    else send(RESULT, id, written(result));
  } catch (error) {
    const [message, origin] = told(error).map((text) => Buffer.from(text));
    send(EXCEPTION, id, measured(message, origin));
  }
}

/** Takes frames apart; the parts of a large one are joined once, when all are there. */
function serve(handle) {
  let parts = [];
  let held = 0;
  let wanted = HEADER;
  calls.on("data", (chunk) => {
    parts.push(chunk);
    held += chunk.length;
    if (held < wanted) return;
    let pending = parts.length === 1 ? chunk : Buffer.concat(parts);
    wanted = HEADER;
    while (pending.length >= HEADER) {
      const end = HEADER + pending.readUInt32LE(0);
      if (pending.length < end) {
        wanted = end;
        break;
      }
      const [kind, id, frame] = [pending[4], pending.readBigUInt64LE(8), pending.subarray(HEADER, end)];
      if (kind === CALL) answer(handle, id, frame);
      else streams.get(id)?.told(kind, frame);
      pending = pending.subarray(end);
    }
    parts = [pending];
    held = pending.length;
  });
  calls.on("end", () => process.exit(0));
}

/** The user's function: an export of that name, of an ES module or of CommonJS; else the one function that is exported. */
async function load(file, name) {
  const module = await import(pathToFileURL(resolve(file)));
  const handle = module[name] ?? module.default?.[name] ?? module.default;
  if (typeof handle === "function") return handle;
  console.error(`${file} exports no function ${name}; faena.toml names another with handler = "FILE:NAME"`);
  process.exit(1);
}

const place = process.argv[2];
const [file, name] = [place.slice(0, place.lastIndexOf(":")), place.slice(place.lastIndexOf(":") + 1)];
process.argv.splice(1, 2, resolve(file));
try {
  serve(await load(file, name));
} catch (error) {
  console.error(told(error)[1]);
  process.exit(1);
}
send(READY, 0n, Buffer.alloc(0));
