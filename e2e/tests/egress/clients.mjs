// Reaches servers by what Node has and what people add to it, unchanged. Tells for each what it got.
import fs from "node:fs";
import https from "node:https";
import net from "node:net";
import dns from "node:dns/promises";
import pg from "pg";
import { Agent, request } from "undici";

const ca = fs.readFileSync(new URL("./ca.pem", import.meta.url));
const url = "https://web.far.test/hello.txt";

const clients = {
  fetch: async () => (await fetch("http://web.far.test/hello.txt")).text(),
  https: () =>
    new Promise((resolve, reject) => {
      https
        .get(url, { ca }, (reply) => {
          let body = "";
          reply.on("data", (data) => (body += data)).on("end", () => resolve(body));
        })
        .on("error", reject);
    }),
  undici: async () => (await request(url, { dispatcher: new Agent({ connect: { ca } }) })).body.text(),
  pg: async () => {
    const client = new pg.Client({ host: "db.far.test", user: "postgres", database: "postgres" });
    await client.connect();
    const { rows } = await client.query("select 6 * 7 as n");
    await client.end();
    return String(rows[0].n);
  },
  text: async () => String((await dns.resolveTxt("text.far.test")).length),
  refused: () =>
    new Promise((resolve) => {
      const socket = net.connect(1, "web.far.test");
      socket.on("connect", () => resolve("connected")).on("error", (error) => resolve(error.code));
    }),
};

export async function go() {
  const found = {};
  for (const [name, client] of Object.entries(clients)) {
    found[name] = await client().catch((error) => String(error.cause ?? error));
  }
  return found;
}
