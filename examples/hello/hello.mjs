// Greets whoever is named in the params.
import { readFileSync } from "node:fs";

const { name = "world" } = JSON.parse(readFileSync(0, "utf8"));
console.log(`Hello, ${name}!`);
