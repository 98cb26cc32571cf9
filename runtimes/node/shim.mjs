// Keeps a Node handler alive: node shim.mjs FILE:NAME
//
// Calls come in frames on standard input, and answers go to a descriptor (docs/reference/handler-protocol.md).

import { Socket } from "node:net";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const HEADER = 16;
const LENGTHS = 8;
const [READY, RESULT, EXCEPTION] = [0x80, 0x81, 0x82];

const calls = new Socket({ fd: 0, readable: true, writable: false });
const answers = new Socket({ fd: 3, readable: false, writable: true });

function send(kind, id, body) {
  const header = Buffer.alloc(HEADER);
  header.writeUInt32LE(body.length, 0);
  header[4] = kind;
  header.writeBigUInt64LE(id, 8);
  answers.write(Buffer.concat([header, body]));
}

/** What a call knows of itself; read from its JSON when it is first asked for. */
class Context {
  #text;
  #values;

  constructor(text, body) {
    this.#text = text;
    /** The body of a request that is no JSON; none otherwise. */
    this.body = body;
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

  /** How long the attempt may still take. */
  remainingMs() {
    return Math.max(0, this.deadlineMs - Date.now());
  }
}

async function answer(handle, id, frame) {
  const first = LENGTHS + frame.readUInt32LE(0);
  const end = first + frame.readUInt32LE(4);
  try {
    const params = JSON.parse(frame.toString("utf8", first, end));
    const body = end < frame.length ? frame.subarray(end) : undefined;
    if (body) params.bodyBase64 = body.toString("base64");
    const result = await handle(params, new Context(frame.subarray(LENGTHS, first), body));
    const text = typeof result === "string" ? result : (JSON.stringify(result) ?? "null");
    send(RESULT, id, Buffer.from(text));
  } catch (error) {
    const message = Buffer.from(String(error));
    const length = Buffer.alloc(4);
    length.writeUInt32LE(message.length, 0);
    send(EXCEPTION, id, Buffer.concat([length, message, Buffer.from(String(error?.stack ?? ""))]));
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
      answer(handle, pending.readBigUInt64LE(8), pending.subarray(HEADER, end));
      pending = pending.subarray(end);
    }
    parts = [pending];
    held = pending.length;
  });
  calls.on("end", () => process.exit(0));
}

const place = process.argv[2];
const [file, name] = [place.slice(0, place.lastIndexOf(":")), place.slice(place.lastIndexOf(":") + 1)];
const module = await import(pathToFileURL(resolve(file)));
const handle = module[name] ?? module.default?.[name];
if (typeof handle !== "function") {
  console.error(`${file} exports no function ${name}; faena.toml names another with handler = "FILE:NAME"`);
  process.exit(1);
}
serve(handle);
send(READY, 0n, Buffer.alloc(0));
