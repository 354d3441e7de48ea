#!/usr/bin/env node
// Has a latentgate make a PNG: of latents, or of a picture, there and back.
//
//     client.js picture.jpg OUTPUT.png [MODEL]            encode, then decode what came
//     client.js latents.safetensors OUTPUT.png [MODEL]    decode
//
// LATENTGATE_SERVER names the server (default http://127.0.0.1:8790), MODEL is `builtin` unless given. The proto is read
// when the program runs; nothing is generated.
import { readFileSync, writeFileSync } from "node:fs";
import { extname } from "node:path";
import { credentials, loadPackageDefinition, status } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { blake3 } from "@noble/hashes/blake3.js";
import protobuf from "protobufjs";

// A message may have 4 MiB; the server's own chunks have 1.
const CHUNK_BYTES = 1 << 20;
// gRPC waits for ever unless it is told not to. A first decode of a large model on a CPU takes a while.
const TIMEOUT_MS = 300_000;

// `longs` and `enums` by what they are easiest to read as; no length here comes near 2^53.
const proto = loadSync("latentgate/v1/latents.proto", {
  includeDirs: [new URL("../../proto", import.meta.url).pathname],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
});
const { Latents } = loadPackageDefinition(proto).latentgate.v1;

// What google.rpc puts in the trailer `grpc-status-details-bin`, as far as it is read here.
const rpc = protobuf.parse(
  `syntax = "proto3";
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Any { string type_url = 1; bytes value = 2; }
  message ErrorInfo { string reason = 1; string domain = 2; }
  message BadRequest { message Violation { string field = 1; string description = 2; } repeated Violation violations = 1; }
  message RetryInfo { message Duration { int32 seconds = 1; int32 nanos = 2; } Duration retry_delay = 1; }`,
  { keepCase: true },
).root;

/**
 * One exchange: `call` is a stream of client.decode() or client.encode(), `data` what `spec` is of.
 *
 * The digest of the data goes first. What is cached comes at once, and the data never cross the wire; otherwise the server
 * says `need_data`, which costs one round trip. Leave the digest out and send the first data with the spec where hits
 * are rare.
 */
async function ask(call, spec, data) {
  const chunks = [];
  const digest = blake3.create();
  let header, trailer, sent = false;
  call.write({ spec: { ...spec, digest: blake3(data) } });
  for await (const message of call) {
    switch (message.event) {
      case "need_data":
        sent = true;
        for (let at = 0; at < data.length; at += CHUNK_BYTES) {
          call.write({ data: data.subarray(at, at + CHUNK_BYTES) });
        }
        call.end();
        break;
      case "header":
        header = message.header;
        break;
      case "chunk":
        digest.update(message.chunk);
        chunks.push(message.chunk);
        break;
      case "trailer":
        trailer = message.trailer;
        call.end();
        break;
      // Others, those of later versions too, are for people who wait: accepted, progress, preview.
    }
  }
  const answer = Buffer.concat(chunks);
  if (!header || answer.length !== header.length || !trailer?.digest.equals(Buffer.from(digest.digest()))) {
    throw new Error("the answer is not whole, or was damaged on its way; try again");
  }
  const source = trailer.source.replace("SOURCE_", "");
  const took = (trailer.timings.total_us / 1000).toFixed(1);
  const summary = `${source}, ${answer.length} bytes in ${took} ms, input ${sent ? "sent" : "not sent"}`;
  return { header, data: answer, summary };
}

/** The only tensor of a file: its TensorSpec and bytes, which are laid out as the wire wants them. */
function readSafetensors(path) {
  const raw = readFileSync(path);
  const start = 8 + Number(raw.readBigUInt64LE(0));
  const { __metadata__, ...tensors } = JSON.parse(raw.toString("utf8", 8, start));
  const names = Object.keys(tensors);
  if (names.length !== 1) {
    throw new Error(`${path}: wanted one tensor, found ${names.join(", ") || "none"}`);
  }
  const { dtype, shape, data_offsets: [begin, end] } = tensors[names[0]];
  return { tensor: { dtype: `DTYPE_${dtype}`, shape }, data: raw.subarray(start + begin, start + end) };
}

/** What a failed call means, for people: the message names the remedy, google.rpc's details are for programs. */
function explain(error, server) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes && error.code === status.DEADLINE_EXCEEDED) {
    return `${server}: no answer within ${TIMEOUT_MS / 1000} s`;
  }
  if (!bytes) { // nobody answered, or not a latentgate
    return `${server}: ${status[error.code]}: ${error.details}\n  is it the data port of a running \`latentgate serve\`?`;
  }
  const lines = [`${status[error.code]}: ${error.details}`];
  for (const { type_url, value } of rpc.lookupType("Status").decode(bytes).details) {
    const name = type_url.split(".").pop();
    const detail = rpc.get(name) && rpc.lookupType(name).decode(value);
    if (name === "ErrorInfo") {
      lines.push(`reason: ${detail.reason}`);
    } else if (name === "BadRequest") {
      lines.push(...detail.violations.map(({ field }) => `field: ${field}`));
    } else if (name === "RetryInfo") {
      lines.push(`try again in ${detail.retry_delay.seconds * 1000 + detail.retry_delay.nanos / 1e6} ms`);
    }
  }
  return lines.join("\n  ");
}

async function main(source, output, model = "builtin") {
  const server = (process.env.LATENTGATE_SERVER || "http://127.0.0.1:8790").replace(/^http:\/\/|\/$/g, "");
  // One client serves any number of calls, so keep it.
  const client = new Latents(server, credentials.createInsecure());
  const options = () => ({ deadline: Date.now() + TIMEOUT_MS });
  try {
    let latents;
    if (extname(source) === ".safetensors") {
      latents = readSafetensors(source);
    } else {
      const picture = readFileSync(source);
      const encoded = await ask(client.encode(options()), { model, image: { length: picture.length } }, picture);
      console.log(`encode: ${encoded.summary}`);
      latents = { tensor: encoded.header.tensor, data: encoded.data };
    }
    const spec = { model, latents: latents.tensor, output: { png: {} } };
    const decoded = await ask(client.decode(options()), spec, latents.data);
    console.log(`decode: ${decoded.summary}`);
    writeFileSync(output, decoded.data);
  } catch (error) {
    console.error(error.metadata ? explain(error, server) : `client.js: ${error.message}`);
    process.exitCode = 1;
  } finally {
    client.close();
  }
}

if (process.argv.length < 4 || process.argv.length > 5) {
  console.error("client.js INPUT OUTPUT.png [MODEL]: INPUT is a picture, or latents in a .safetensors file");
  process.exitCode = 1;
} else {
  await main(...process.argv.slice(2));
}
