import Fastify from "fastify";
import { Readable } from "node:stream";

const app = Fastify();
app.get("/hello/:name", (request) => ({ name: request.params.name, query: request.query }));
app.post("/echo", (request, reply) => reply.code(201).send(request.body));
app.get("/stream", (request, reply) => reply.type("text/plain").send(Readable.from(["one,", "two,", "three"])));
await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
