#!/usr/bin/env python3
"""diffusers' `remote_decode` over gRPC: the same arguments and results, one connection kept, the digest sent first.

    from remote_decode import remote_decode
    picture = remote_decode("http://127.0.0.1:8790/decode/sd-xl", latents, scaling_factor=0.13025)

The endpoint is the URL of the HTTP protocol. Latents are a numpy array or a torch tensor; torch is not needed, and what
comes back as a tensor is what was given. Where diffusers (0.40) and this differ:

- a batch with `output_type="pil"` and no processor is refused, where an endpoint answers with the first picture alone;
- latents on a GPU and latents that are not contiguous are sent as they are meant.

As a program: remote_decode.py latents.safetensors OUTPUT.png [MODEL].
"""
import functools
import io
import os
import pathlib
import sys
from urllib.parse import urlsplit

import grpc
import numpy as np

import client
from client import pb

DTYPES = {"float32": pb.DTYPE_F32, "float16": pb.DTYPE_F16, "bfloat16": pb.DTYPE_BF16}


def remote_decode(
    endpoint,
    tensor,
    processor=None,
    do_scaling=True,
    scaling_factor=None,
    shift_factor=None,
    output_type="pil",
    return_type="pil",
    image_format="jpg",
    partial_postprocess=False,
    input_tensor_type="binary",
    output_tensor_type="binary",
    height=None,
    width=None,
):
    """Decodes latents; see diffusers.utils.remote_utils.remote_decode for what the arguments mean.

    Raises RuntimeError({"error": "..."}), as diffusers does, for whatever the server refuses.
    """
    del input_tensor_type, output_tensor_type  # HTTP's spellings of bytes
    server, model = parse(endpoint)
    if tensor.ndim == 3 and (height is None or width is None):
        raise ValueError("`height` and `width` required for packed latents.")
    if output_type == "pt" and return_type == "pil" and not partial_postprocess and processor is None:
        raise ValueError("`processor` is required.")
    if (output_type == "mp4") != (return_type == "mp4") or (output_type, return_type, processor) == ("pil", "pt", None):
        raise ValueError(f"output_type={output_type!r} cannot be returned as {return_type!r}.")
    dtype, data = to_bytes(tensor)
    spec = pb.DecodeSpec(
        model=model,
        latents=pb.TensorSpec(dtype=dtype, shape=tensor.shape),
        scaling=scaling(do_scaling, scaling_factor, shift_factor),
        output=output(output_type, image_format, partial_postprocess, processor),
        height=height or 0,
        width=width or 0,
    )
    try:
        answer = client.ask(stub(server).Decode, pb.DecodeRequest, spec, data)
    except grpc.RpcError as error:
        raise RuntimeError({"error": client.explain(error, server)}) from None
    if output_type == "mp4":
        return answer.data
    if answer.header.content_type.startswith("image/"):
        return picture(answer.data)
    return finish(answer, is_torch(tensor), processor, output_type, return_type, partial_postprocess)


def parse(endpoint):
    """http://HOST:PORT/decode/MODEL to (HOST:PORT, MODEL)."""
    url = urlsplit(endpoint)
    match url.path.strip("/").split("/"):
        case ["decode", model] if url.scheme == "http" and url.netloc:
            return url.netloc, model
    raise ValueError(f"endpoint {endpoint}: wanted http://HOST:PORT/decode/MODEL")


# A channel is made for many calls: diffusers' own connects anew for each.
stub = functools.cache(client.connect)


def scaling(do_scaling, factor, shift):
    if not do_scaling:
        return pb.Scaling(applied=pb.Scaling.Applied())
    if factor is None:
        return None  # the model's own
    return pb.Scaling(given=pb.Scaling.Given(factor=factor, shift=shift or 0))


def output(output_type, image_format, partial_postprocess, processor):
    match output_type:
        case "mp4":
            return pb.Output(mp4=pb.Output.Mp4())
        case "pt" if partial_postprocess:
            return pb.Output(uint8=pb.Output.Uint8())
        case "pt":
            return pb.Output(tensor=pb.Output.Tensor())
        case "pil" if processor is not None:
            return pb.Output(unit=pb.Output.Unit())
        case "pil" if image_format == "png":
            return pb.Output(png=pb.Output.Png())
        case "pil":
            return pb.Output(jpeg=pb.Output.Jpeg())
    raise ValueError(f"output_type={output_type!r}: wanted 'pil', 'pt' or 'mp4'.")


def is_torch(tensor):
    return type(tensor).__module__.partition(".")[0] == "torch"


def to_bytes(tensor):
    """Dtype and bytes, row-major and little-endian."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"latents are {name}: wanted {', '.join(DTYPES)}.")
    if is_torch(tensor):
        tensor = tensor.detach().cpu().contiguous()
        if name == "bfloat16":  # which numpy does not know
            tensor = tensor.view(sys.modules["torch"].int16)
        tensor = tensor.numpy()
    return DTYPES[name], tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()


def picture(file):
    from PIL import Image

    image = Image.open(io.BytesIO(file)).convert("RGB")
    image.format = "png" if file.startswith(b"\x89PNG") else "jpeg"  # converting forgets it
    return image


def finish(answer, torch_wanted, processor, output_type, return_type, partial_postprocess):
    """A tensor reply, as `return_type` wants it."""
    dtype = np.dtype("u1" if answer.header.tensor.dtype == pb.DTYPE_U8 else "<f2")
    array = np.frombuffer(bytearray(answer.data), dtype).reshape(answer.header.tensor.shape)
    if return_type == "pt":
        return sys.modules["torch"].from_numpy(array) if torch_wanted else array
    from PIL import Image

    if partial_postprocess and output_type == "pt":
        images = [Image.fromarray(image) for image in array]
        return images[0] if len(images) == 1 else images
    if output_type == "pil":  # a processor was given: finished pixels in 0..1
        pixels = (array.transpose(0, 2, 3, 1).astype("f4") * 255).round().astype("u1")
        return [Image.fromarray(image) for image in pixels]
    import torch  # which diffusers' processors are made of

    frames = getattr(processor, "postprocess_video", processor.postprocess)
    return frames(torch.from_numpy(array), output_type="pil")[0]


def main(source, target, model="builtin"):
    server = os.environ.get("LATENTGATE_SERVER", "http://127.0.0.1:8790").rstrip("/")
    tensor, data = client.read_safetensors(pathlib.Path(source))
    dtypes = {pb.DTYPE_F32: "<f4", pb.DTYPE_F16: "<f2"}
    latents = np.frombuffer(data, dtypes[tensor.dtype]).reshape(tensor.shape)
    image = remote_decode(f"{server}/decode/{model}", latents, image_format="png")
    image.save(target)
    print(f"{target}: {image.width}x{image.height}")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
