#!/usr/bin/env python3
"""A real endpoint: the HTTP protocol of hybrid inference, answered by PyTorch from one checkpoint.

    endpoint.py --model tests/fixtures/models/sd1 --task decode --port 0

Listens on the loopback, and prints the port as one line once it answers. There is one model and one task, so whatever
the path, it is this endpoint's. Like the hosted service it replies in float16 and makes everything else of those
numbers; unlike it, it computes in float32. Picture models only.

It is made to stand behind a cache: nothing is remembered, every request is computed, and every reply says in its header
`count` how many POST requests have come so far (GET answers `Ok` and is not counted).
"""
import argparse
import base64
import http.server
import io
import json
import math
import threading
import urllib.parse

import torch
from PIL import Image

import reference

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "uint8": torch.uint8}
TENSORS = ("tensor/binary", "tensor/base64")
# What the hosted service takes: decodes to 2048 x 2048 pixels, and bodies of the float32 tensor of as many.
MAX_PIXELS = 2048 * 2048
MAX_BODY = 3 * 4 * MAX_PIXELS


class Refused(Exception):
    """What was asked for cannot be had."""


def require(condition, text):
    if not condition:
        raise Refused(text)


class Query:
    """The parameters. Absent, empty, `None` and `null` are one and the same."""

    def __init__(self, text):
        spelled = urllib.parse.parse_qs(text)
        self.values = {name: [v for v in values if v not in ("None", "null")] for name, values in spelled.items()}

    def all(self, name):
        return self.values.get(name, [])

    def one(self, name):
        return next(iter(self.all(name)), None)

    def flag(self, name):
        value = (self.one(name) or "false").lower()
        require(value in ("true", "false"), f"{name}: wanted true or false, got {value!r}")
        return value == "true"

    def number(self, name):
        value = self.one(name)
        number = None if value is None else float(value)
        require(number is None or math.isfinite(number), f"{name}: wanted a finite number, got {value!r}")
        return number

    def whole(self, name):
        value = self.one(name)
        require(value is not None and value.isdecimal(), f"{name}: wanted a whole number, got {value!r}")
        return int(value)

    def shape(self):
        values = self.all("shape")
        if len(values) == 1:  # one value may be a list
            values = values[0].strip("[]").split(",")
        dims = [value.strip() for value in values]
        require(dims and all(dim.isdecimal() and int(dim) > 0 for dim in dims), f"shape: wanted sizes, got {values}")
        return [int(dim) for dim in dims]

    def scaling(self, config):
        """(factor, shift): those given, else the model's own if asked for, else none."""
        factor, shift = self.number("scaling_factor"), self.number("shift_factor")
        require(factor != 0, "scaling_factor: must not be 0")
        if factor is None and self.flag("do_scaling"):
            factor, shift = config.scaling_factor, config.shift_factor
        return factor or 1.0, shift or 0.0


def media_type(header):
    return (header or "").split(";")[0].strip().lower()


def received_tensor(query, content_type, body):
    if content_type == "tensor/base64":
        body = base64.b64decode(json.loads(body)["inputs"], validate=True)
    else:
        require(content_type in ("", "tensor/binary"), f"content type {content_type!r} not supported")
    dtype = query.one("dtype")
    require(dtype in DTYPES, f"dtype: supported are {list(DTYPES)}, got {dtype!r}")
    shape = query.shape()
    want = math.prod(shape) * DTYPES[dtype].itemsize
    require(len(body) == want, f"{dtype} {shape} is {want} bytes, got {len(body)}")
    x = torch.frombuffer(bytearray(body), dtype=DTYPES[dtype]).reshape(shape)
    require(bool(torch.isfinite(x).all()), "the tensor holds NaN or infinity")
    return x


def tensor_reply(x, accept):
    """(content type, further headers, body)"""
    data, shape, dtype = x.contiguous().numpy().tobytes(), list(x.shape), str(x.dtype).removeprefix("torch.")
    if accept == "tensor/base64":
        inputs = base64.b64encode(data).decode()
        return accept, {}, json.dumps({"inputs": inputs, "parameters": {"shape": shape, "dtype": dtype}}).encode()
    return "tensor/binary", {"shape": json.dumps(shape, separators=(",", ":")), "dtype": dtype}, data


def unpacked(tokens, query):
    height, width = query.whole("height"), query.whole("width")
    count, channels = tokens.shape[1:]
    fits = count == height // 16 * (width // 16) and channels % 4 == 0
    require(fits, f"packed latents {list(tokens.shape)} are no picture of {width}x{height}")
    return reference.unpack(tokens, height, width)


def natural(output_type, query):
    """What is answered to a client that accepts anything."""
    if output_type == "pt":
        return "tensor/binary"
    return "image/jpeg" if query.one("image_format") in ("jpg", "jpeg") else "image/png"


def decode(vae, query, accept, content_type, body):
    output_type = query.one("output_type") or "pil"
    require(output_type in ("pil", "pt"), f"output_type: wanted pil or pt, got {output_type!r}")
    accept = natural(output_type, query) if accept in ("", "*/*") else accept
    known = TENSORS if output_type == "pt" else (*TENSORS, "image/jpeg", "image/png")
    require(accept in known, f"accept: {output_type} comes as one of {known}, got {accept!r}")
    is_finished = query.flag("partial_postprocess")
    factor, shift = query.scaling(vae.config)

    z = received_tensor(query, content_type, body)
    require(z.is_floating_point(), f"latents are floats, got {z.dtype}")
    z = unpacked(z, query) if z.ndim == 3 else z
    channels = vae.config.latent_channels
    require(z.ndim == 4 and z.shape[1] == channels, f"latents have {channels} channels, got {list(z.shape)}")
    require(z.shape[2] * z.shape[3] * 64 <= MAX_PIXELS, f"at most {MAX_PIXELS} pixels")
    y = vae.decode(z.float() / factor + shift).sample.half()

    if accept.startswith("image/"):
        picture = Image.fromarray(reference.uint8(y)[0].numpy())
        return accept, {}, reference.picture_bytes(picture, accept.removeprefix("image/"))
    if output_type == "pil":
        return tensor_reply(reference.unit(y), accept)
    return tensor_reply(reference.uint8(y) if is_finished else y, accept)


def check_size(width, height):
    require(min(width, height) >= 8, f"a picture is at least 8 pixels a side, got {width}x{height}")
    require(width * height <= MAX_PIXELS, f"a picture is at most {MAX_PIXELS} pixels, got {width}x{height}")


def encode(vae, query, accept, content_type, body):
    require(accept in ("", "*/*", *TENSORS), f"accept: latents come as one of {TENSORS}, got {accept!r}")
    factor, shift = query.scaling(vae.config)
    if query.all("shape") or query.all("dtype"):
        x = received_tensor(query, content_type, body)
        require(x.ndim == 4 and x.shape[1] == 3, f"pixels are [b, 3, h, w], got {list(x.shape)}")
        check_size(x.shape[3], x.shape[2])
        x = reference.tensor_pixels(x)
    else:
        image = Image.open(io.BytesIO(body))
        check_size(*image.size)
        x = reference.picture_pixels(image)
    z = vae.encode(x).latent_dist.mode()
    return tensor_reply(((z - shift) * factor).half(), accept)


class Endpoint(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, port, vae, task):
        super().__init__(("127.0.0.1", port), Handler)
        self.vae, self.task = vae, task
        self.count, self.counting, self.computing = 0, threading.Lock(), threading.Lock()

    def answer(self, path, headers, body):
        with self.counting:
            self.count += 1
        query = Query(urllib.parse.urlsplit(path).query)
        media = [media_type(headers[name]) for name in ("Accept", "Content-Type")]
        with self.computing, torch.inference_mode():
            return self.task(self.vae, query, *media, body)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.reply(200, "text/plain", {}, b"Ok")

    def do_POST(self):
        length = self.headers["Content-Length"] or ""
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True  # the body is left unread
            return self.refuse(f"Content-Length: wanted at most {MAX_BODY}, got {length!r}")
        body = self.rfile.read(int(length))
        try:
            answer = self.server.answer(self.path, self.headers, body)
        except Exception as error:  # whatever goes wrong with a request, the service calls it a bad one
            return self.refuse(str(error) or type(error).__name__)
        self.reply(200, *answer)

    def refuse(self, text):
        self.reply(400, "application/json", {}, json.dumps({"error": text}).encode())

    def reply(self, status, content_type, headers, body):
        fixed = {"Content-Type": content_type, "Content-Length": len(body), "count": self.server.count}
        self.send_response(status)
        for name, value in (fixed | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="the folder of a checkpoint")
    ap.add_argument("--task", required=True, choices=["decode", "encode"])
    ap.add_argument("--port", type=int, required=True, help="0 is any that is free")
    args = ap.parse_args()
    torch.set_num_threads(1)  # who asks has the other core
    task = {"decode": decode, "encode": encode}[args.task]
    server = Endpoint(args.port, reference.load(args.model), task)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
