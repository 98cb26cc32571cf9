// A server for the tests of streams. Nothing in it depends on time: a request that waits goes on when another one tells it to.
import http from "node:http";
import { createHash } from "node:crypto";

let waiting = [];
let closed = 0;
let written = 0;

const wait = () => new Promise((go) => waiting.push(go));

const routes = {
  async "/events"(request, response) {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    request.on("close", () => { if (!response.writableFinished) closed += 1; });
    for (let number = 0; ; number += 1) {
      response.write(`data: ${number}\n\n`);
      await wait();
    }
  },
  "/go"(request, response) {
    const ready = waiting;
    waiting = [];
    ready.forEach((go) => go());
    response.end(String(ready.length));
  },
  "/closed"(request, response) { response.end(String(closed)); },
  "/echo"(request, response) {
    response.writeHead(200, { "Content-Type": "application/octet-stream" });
    request.pipe(response);
  },
  async "/count"(request, response) {
    let bytes = 0;
    for await (const chunk of request) bytes += chunk.length;
    response.end(JSON.stringify({ bytes, length: request.headers["content-length"] ?? null, trailers: request.trailers }));
  },
  "/refuse"(request, response) { response.writeHead(413); response.end("too much"); },
  async "/die"(request, response) {
    response.writeHead(200, { "Content-Type": "text/plain" });
    response.write("the beginning");
    await wait();
    process.exit(3);
  },
  async "/short"(request, response) {
    response.writeHead(200, { "Content-Length": "100000" });
    response.write("x".repeat(70000));
    await wait();
    response.socket.destroy();
  },
  "/large"(request, response) {
    const chunk = Buffer.alloc(64 * 1024, 7);
    const total = 1024;
    response.writeHead(200, { "Content-Length": String(chunk.length * total) });
    let left = total;
    const more = () => {
      while (left > 0) {
        left -= 1;
        written += chunk.length;
        if (!response.write(chunk)) { response.once("drain", more); return; }
      }
      response.end();
    };
    more();
  },
  "/written"(request, response) { response.end(String(written)); },
  "/trailers"(request, response) {
    response.writeHead(200, { "Content-Type": "text/plain", Trailer: "X-Sum" });
    response.write("body");
    response.addTrailers({ "X-Sum": "42" });
    response.end();
  },
  async "/hints"(request, response) {
    response.writeEarlyHints({ link: "</style.css>; rel=preload" });
    if (!request.url.endsWith("?now")) await wait();
    response.end("done");
  },
  "/head"(request, response) {
    response.setHeader("Content-Type", "application/json");
    response.end(JSON.stringify({ method: request.method, url: request.url, headers: request.headers }));
  },
  "/cookie"(request, response) {
    response.setHeader("Set-Cookie", ["a=1; Domain=localhost; Path=/; HttpOnly", "b=2"]);
    response.setHeader("Access-Control-Allow-Origin", "*");
    response.writeHead(303, { Location: "/next" });
    response.end();
  },
};

const server = http.createServer((request, response) => {
  const route = routes[request.url.split("?")[0]];
  if (route) route(request, response);
  else { response.writeHead(404); response.end("nothing here"); }
});

// RFC 6455, by hand: no library is at hand.
server.on("upgrade", (request, socket) => {
  const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n` +
    (request.headers["sec-websocket-extensions"] ? `X-Extensions: ${request.headers["sec-websocket-extensions"]}\r\n` : "") + "\r\n");
  socket.on("data", (bytes) => {
    // Frames of tests are small and come whole: unmask, and send it back.
    const length = bytes[1] & 0x7f;
    const mask = bytes.subarray(2, 6);
    const payload = bytes.subarray(6, 6 + length).map((byte, index) => byte ^ mask[index % 4]);
    const opcode = bytes[0] & 0x0f;
    socket.write(Buffer.concat([Buffer.from([0x80 | opcode, payload.length]), payload]));
    if (opcode === 8) socket.end();
  });
  socket.on("close", () => { closed += 1; });
  socket.on("error", () => {});
});
server.listen(process.env.PORT, "127.0.0.1");
