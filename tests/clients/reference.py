"""What PyTorch makes of latents and pictures in float32 on the CPU, from the same checkpoints that the server loads.

Only arithmetic: nothing here knows about requests. `decode` gives the decoder's output y, [b, 3, h, w], not clamped;
`unit` and `uint8` are the two other forms in which it travels, both made from y rounded to float16 as the hosted service
makes them. `encode` gives the mean of the posterior.
"""
import functools
import io
import pathlib

import diffusers
import numpy as np
import torch
from PIL import Image

diffusers.logging.set_verbosity_error()


@functools.cache
def load(path):
    return diffusers.AutoencoderKL.from_pretrained(str(path), torch_dtype=torch.float32, local_files_only=True).eval()


class Reference:
    """The models of one folder, loaded when first asked for; equal questions are answered from memory."""

    def __init__(self, models):
        self.models = pathlib.Path(models)
        self.known = {}

    def decode(self, folder, z):
        """[b, c, h, w], already scaled, to y, [b, 3, 8h, 8w]."""
        return self._once("decode", folder, z, lambda vae: vae.decode(z).sample)

    def encode(self, folder, x):
        """[b, 3, h, w] in -1..1 to the mean, [b, c, h/8, w/8], not scaled."""
        return self._once("encode", folder, x, lambda vae: vae.encode(x).latent_dist.mode())

    @torch.no_grad()
    def _once(self, task, folder, tensor, run):
        key = (task, folder, tuple(tensor.shape), tensor.numpy().tobytes())
        if key not in self.known:
            self.known[key] = run(load(self.models / folder))
        return self.known[key]


def unit(y):
    """[b, 3, h, w] in 0..1, float16."""
    return (y.half() * 0.5 + 0.5).clamp(0, 1)


def uint8(y):
    """[b, h, w, 3] of 8 bits."""
    return (unit(y).permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).contiguous()


def picture_pixels(image):
    """A PIL image of any mode to what the encoder reads, [1, 3, h, w] in -1..1, both sides cut to multiples of 8."""
    image = image.convert("RGB")
    size = (image.width // 8 * 8, image.height // 8 * 8)
    if size != image.size:
        image = image.resize(size, Image.LANCZOS)
    x = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return x.permute(2, 0, 1)[None].contiguous() * 2 - 1


def picture_file(data):
    """The same of a picture file."""
    return picture_pixels(Image.open(io.BytesIO(data)))


def picture_bytes(image, kind):
    """A picture file as Pillow writes it by default."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tensor_pixels(x):
    """The same of a tensor [b, 3, h, w]: 8 bits, or floats in 0..1, or in -1..1 if any of them is negative."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    size = (x.shape[2] // 8 * 8, x.shape[3] // 8 * 8)
    if size != tuple(x.shape[2:]):
        x = torch.nn.functional.interpolate(x, size=size, mode="nearest")
    return x if x.min() < 0 else x * 2 - 1


def pack(z):
    """[b, c, h, w] to FLUX's tokens of 2x2 blocks, [b, h/2 * w/2, 4c]."""
    b, c, h, w = z.shape
    z = z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return z.reshape(b, h // 2 * (w // 2), 4 * c).contiguous()


def unpack(tokens, height, width):
    """The inverse of `pack` for a picture of that many pixels, rounded down to multiples of 16."""
    b, _, c = tokens.shape
    z = tokens.reshape(b, height // 16, width // 16, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(b, c // 4, height // 16 * 2, width // 16 * 2).contiguous()


def psnr(got, want):
    """Decibels between two pictures [h, w, 3] of 8 bits: over all values, and over the luma alone."""
    error = np.asarray(got, dtype=np.float64) - np.asarray(want, dtype=np.float64)
    mean = [np.mean(error**2), np.mean((error @ [0.299, 0.587, 0.114]) ** 2)]
    return [float(10 * np.log10(255**2 / max(m, 1e-9))) for m in mean]


def pillow_jpeg_psnr(pixels):
    """`psnr` of what Pillow's JPEG of quality 75 keeps of the picture."""
    file = picture_bytes(Image.fromarray(pixels), "jpeg")
    return psnr(Image.open(io.BytesIO(file)), pixels)
