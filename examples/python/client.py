#!/usr/bin/env python3
"""Has a latentgate make a PNG: of latents, or of a picture, there and back.

    client.py picture.jpg OUTPUT.png [MODEL]            encode, then decode what came
    client.py latents.safetensors OUTPUT.png [MODEL]    decode

LATENTGATE_SERVER names the server (default http://127.0.0.1:8790), MODEL is `builtin` unless given. examples/README.md
says what to install and how the modules of latentgate.v1 are made.
"""
import json
import os
import pathlib
import queue
import sys

import blake3
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from latentgate.v1 import latents_pb2 as pb, latents_pb2_grpc

# A message may have 4 MiB; the server's own chunks have 1.
CHUNK_BYTES = 1 << 20
# gRPC waits for ever unless it is told not to. A first decode of a large model on a CPU takes a while.
TIMEOUT_SECONDS = 300


class Broken(Exception):
    """The answer is not whole, or not what was announced."""


class Answer:
    """A whole answer, proved by its digest."""

    def __init__(self, header, trailer, data, sent):
        self.header, self.trailer, self.data, self.sent = header, trailer, data, sent

    def __str__(self):
        source = pb.Source.Name(self.trailer.source).removeprefix("SOURCE_")
        took = self.trailer.timings.total_us / 1000
        sent = "input sent" if self.sent else "input not sent"
        return f"{source}, {len(self.data)} bytes in {took:.1f} ms, {sent}"


def ask(call, request, spec, data):
    """One exchange: `call` is stub.Decode or stub.Encode, `request` the class of its messages, `data` what `spec` is of.

    The digest of the data goes first. What is cached comes at once, and the data never cross the wire; otherwise the
    server says `need_data`, which costs one round trip. Leave the digest out and send the first data with the spec
    where hits are rare.
    """
    spec.digest = blake3.blake3(data).digest()
    wanted = queue.SimpleQueue()

    def messages():  # gRPC draws these on a thread of its own
        yield request(spec=spec)
        if wanted.get():
            for at in range(0, len(data), CHUNK_BYTES):
                yield request(data=data[at : at + CHUNK_BYTES])

    header, trailer, chunks, sent, digest = None, None, [], False, blake3.blake3()
    try:
        for message in call(messages(), timeout=TIMEOUT_SECONDS):
            event = message.WhichOneof("event")
            if event == "need_data":
                sent = True
                wanted.put(True)
            elif event == "header":
                header = message.header
            elif event == "chunk":
                digest.update(message.chunk)
                chunks.append(message.chunk)
            elif event == "trailer":
                trailer = message.trailer
            # Others, those of later versions too, are for people who wait: accepted, progress, preview.
    finally:
        wanted.put(False)  # lets `messages` end, whatever happened
    answer = b"".join(chunks)
    if header is None or trailer is None or len(answer) != header.length or digest.digest() != trailer.digest:
        raise Broken("the answer is not whole, or was damaged on its way; try again")
    return Answer(header, trailer, answer, sent)


def encode(stub, model, picture):
    """Bytes of a PNG, JPEG or WebP file to latents, scaled as the model's diffusion network has them."""
    spec = pb.EncodeSpec(model=model, image=pb.EncodeSpec.Image(length=len(picture)))
    return ask(stub.Encode, pb.EncodeRequest, spec, picture)


def decode(stub, model, tensor, data):
    """Latents to a PNG file. `tensor` is the pb.TensorSpec of `data`."""
    spec = pb.DecodeSpec(model=model, latents=tensor, output=pb.Output(png=pb.Output.Png()))
    return ask(stub.Decode, pb.DecodeRequest, spec, data)


def read_safetensors(path):
    """The only tensor of a file: its pb.TensorSpec and bytes, which are laid out as the wire wants them."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    table.pop("__metadata__", None)
    if len(table) != 1:
        raise ValueError(f"{path}: wanted one tensor, found {', '.join(table) or 'none'}")
    (entry,) = table.values()
    begin, end = entry["data_offsets"]
    tensor = pb.TensorSpec(dtype=pb.Dtype.Value(f"DTYPE_{entry['dtype']}"), shape=entry["shape"])
    return tensor, raw[start + begin : start + end]


def explain(error, server):
    """What a failed call means, for people: the message names the remedy, google.rpc's details are for programs."""
    status = rpc_status.from_call(error)
    if status is None and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{server}: no answer within {TIMEOUT_SECONDS} s"
    if status is None:  # nobody answered, or not a latentgate
        return f"{server}: {error.code().name}: {error.details()}\n  is it the data port of a running `latentgate serve`?"
    lines = [f"{error.code().name}: {error.details()}"]
    for detail in status.details:
        if detail.Unpack(info := error_details_pb2.ErrorInfo()):
            lines.append(f"reason: {info.reason}")
        elif detail.Unpack(bad := error_details_pb2.BadRequest()):
            lines += (f"field: {violation.field}" for violation in bad.field_violations)
        elif detail.Unpack(retry := error_details_pb2.RetryInfo()):
            lines.append(f"try again in {retry.retry_delay.ToMilliseconds()} ms")
    return "\n  ".join(lines)


def connect(server):
    """A stub. One channel serves any number of calls and threads, so keep it."""
    return latents_pb2_grpc.LatentsStub(grpc.insecure_channel(server))


def main(source, output, model="builtin"):
    server = os.environ.get("LATENTGATE_SERVER", "http://127.0.0.1:8790").removeprefix("http://").rstrip("/")
    source, stub = pathlib.Path(source), connect(server)
    try:
        if source.suffix == ".safetensors":
            tensor, latents = read_safetensors(source)
        else:
            encoded = encode(stub, model, source.read_bytes())
            print(f"encode: {encoded}")
            tensor, latents = encoded.header.tensor, encoded.data
        decoded = decode(stub, model, tensor, latents)
        print(f"decode: {decoded}")
        pathlib.Path(output).write_bytes(decoded.data)
    except grpc.RpcError as error:
        sys.exit(explain(error, server))
    except (Broken, OSError, ValueError) as error:
        sys.exit(f"client.py: {error}")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
