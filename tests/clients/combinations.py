"""Every way of calling diffusers' remote_decode and remote_encode that the client itself survives.

A `Case` is one call: what is given to the client, and what the user means by it as input of the decoder or encoder. The
meaning is made from the arguments, never from the request, so a request that says something else shows.

Left out because the client breaks on them, whatever the server answers: `output_type="pil", return_type="pt"` without a
processor (unbound variable), `output_type="pt", return_type="pil"` with neither processor nor partial_postprocess
(refused by the client), mp4 without `return_type="mp4"`, and tensors that are not contiguous (the client sends memory it
has freed). Left out as well: 16-bit grey pictures, which Pillow clips, and a shift without a factor in decoding, which
the client sends as `do_scaling=True&shift_factor=...` and nobody has said what that means.
"""
import dataclasses
import itertools
import warnings
import zlib

import diffusers
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode, remote_encode
from PIL import Image

import reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@dataclasses.dataclass(frozen=True)
class Model:
    """What a client knows about a model; `name` is its id in URLs, `folder` its checkpoint's."""

    name: str
    folder: str
    channels: int
    dtype: torch.dtype
    factor: float
    shift: float | None = None

    def factors(self):
        given = {"scaling_factor": self.factor, "shift_factor": self.shift}
        return {name: value for name, value in given.items() if value is not None}


MODELS = [
    Model("sd1", "sd1", 4, torch.float16, 0.18215),
    Model("sdxl", "sdxl", 4, torch.float16, 0.13025),
    Model("flux-tiny", "flux", 16, torch.bfloat16, 0.3611, 0.1159),
]


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a caller of remote_decode wants back."""

    output_type: str
    return_type: str
    image_format: str = "jpg"
    partial: bool = False
    processor: bool = False

    def arguments(self):
        return {
            "output_type": self.output_type,
            "return_type": self.return_type,
            "image_format": self.image_format,
            "partial_postprocess": self.partial,
            "processor": VaeImageProcessor() if self.processor else None,
        }

    def breaks_the_client(self):
        if self.processor or self.output_type == self.return_type:
            return False
        return self.output_type == "pil" or not self.partial

    def reply(self):
        """The form in which the server must answer."""
        if self.output_type == "pil":
            return "unit" if self.processor else {"jpg": "jpeg", "png": "png"}[self.image_format]
        return "uint8" if self.partial else "float"

    def __str__(self):
        extras = " partial" * self.partial + " processor" * self.processor
        return f"{self.output_type}->{self.return_type} {self.image_format}{extras}"


CHOICES = itertools.product(["pil", "pt"], ["pil", "pt"], ["jpg", "png"], [False, True], [False, True])
WISHES = [wish for wish in itertools.starmap(Wish, CHOICES) if not wish.breaks_the_client()]
# One for each form of reply.
FLOAT, UINT8, UNIT = Wish("pt", "pt"), Wish("pt", "pt", partial=True), Wish("pil", "pt", processor=True)
JPEG, PNG = Wish("pil", "pil"), Wish("pil", "pil", "png")
REPLIES = [FLOAT, UINT8, UNIT, JPEG, PNG]


@dataclasses.dataclass
class Case:
    """One call. `meant` is the input of decoder or encoder in float32; None where the server must refuse."""

    task: str
    family: str
    name: str
    model: Model
    subject: torch.Tensor | Image.Image
    options: dict
    meant: torch.Tensor | None = None
    wish: Wish | None = None

    def call(self, base):
        """What the client makes of the server's answer."""
        url = f"{base}/{self.task}/{self.model.name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what the client calls deprecated
            if self.task == "encode":
                return remote_encode(url, self.subject, **self.options)
            return remote_decode(url, self.subject, **self.wish.arguments() | self.options)

    def expected(self, torch_models):
        """y of the decoder, or the latents after the factors."""
        if self.task == "decode":
            return torch_models.decode(self.model.folder, self.meant)
        mean = torch_models.encode(self.model.folder, self.meant)
        return (mean - self.options.get("shift_factor", 0)) * self.options.get("scaling_factor", 1)


def seeded(*what):
    return torch.Generator().manual_seed(zlib.crc32(repr(what).encode()))


def label(dtype):
    return str(dtype).split(".")[-1]


def raw_bytes(x):
    """A tensor of any dtype as it travels: row-major, little-endian, nothing else."""
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


# Decoding: latents, who scales them, how they are laid out, what is wanted.


def latents(model, height, width, batch=1, loudness=1.0):
    """As a denoiser leaves them: N(0, 1), not yet divided by the factor."""
    shape = (batch, model.channels, height, width)
    return loudness * torch.randn(shape, generator=seeded(model.name, shape))


def by_factors(model, x):
    return x, model.factors(), x.float() / model.factor + (model.shift or 0)


def by_model(model, x):
    return x, {}, x.float() / model.factor + (model.shift or 0)


def by_client(model, x):
    x = (x.float() / model.factor + (model.shift or 0)).to(x.dtype)
    return x, {"do_scaling": False}, x.float()


SCALINGS = {"factors": by_factors, "do_scaling": by_model, "scaled by client": by_client}


def plain(x):
    return x, {}


def sized(x):
    """4-D latents with a size, which must be ignored; so it is a wrong one."""
    return x, {"height": 8 * x.shape[3] + 24, "width": 8 * x.shape[2] + 8}


def packed(x):
    """3-D tokens. The size is not a multiple of 16: it is rounded down."""
    return reference.pack(x), {"height": 8 * x.shape[2] + 8, "width": 8 * x.shape[3] + 15}


LAYOUTS = {"4-D": plain, "4-D sized": sized, "packed": packed}


def decode_case(model, x, wish, family, scaling="factors", layout="4-D", **more):
    sent, scale, meant = SCALINGS[scaling](model, x)
    sent, size = LAYOUTS[layout](sent)
    name = f"{model.name} {label(x.dtype)} {list(sent.shape)} {layout} {scaling} {wish} {more or ''}".rstrip()
    return Case("decode", family, name, model, sent, scale | size | more, meant, wish)


def decode_everything():
    """The full product, at a size that is not square and can be packed."""
    for model, layout, scaling in itertools.product(MODELS, LAYOUTS, SCALINGS):
        for dtype, wish in itertools.product(DTYPES, WISHES):
            x = latents(model, 4, 6).to(dtype)
            yield decode_case(model, x, wish, f"decode {model.name}, {layout}, {scaling}", scaling, layout)


def decode_sizes():
    for model, wish in itertools.product(MODELS, REPLIES):
        for height, width in [(1, 1), (1, 7), (5, 3), (7, 9), (13, 8)]:
            x = latents(model, height, width).to(model.dtype)
            yield decode_case(model, x, wish, f"decode {model.name}, sizes")
        for height, width in [(2, 2), (2, 10), (6, 4)]:
            x = latents(model, height, width).to(model.dtype)
            yield decode_case(model, x, wish, f"decode {model.name}, packed sizes", layout="packed")
    for wish in REPLIES:  # the tensor is more than a mebibyte
        x = latents(MODELS[0], 48, 72).to(MODELS[0].dtype)
        yield decode_case(MODELS[0], x, wish, "decode sd1, 384x576 pixels")


def decode_batches():
    for model, wish, layout in itertools.product(MODELS, WISHES, ["4-D", "packed"]):
        x = latents(model, 2, 4, batch=3).to(model.dtype)
        yield decode_case(model, x, wish, f"decode {model.name}, batches of 3", layout=layout)


def decode_beyond_range():
    """Pixels far beyond -1..1: floats are not clamped, everything else is."""
    for model, wish in itertools.product(MODELS, WISHES):
        x = latents(model, 3, 5, loudness=6.0).to(model.dtype)
        yield decode_case(model, x, wish, f"decode {model.name}, beyond -1..1")


def decode_spellings():
    """The same scaling said in other words, and the tensor types that the client calls deprecated."""
    for model, wish in itertools.product(MODELS, REPLIES):
        x, family = latents(model, 3, 4).to(model.dtype), f"decode {model.name}, spellings"
        for off in [False, None]:  # with this the client leaves the factors out
            yield decode_case(model, x, wish, family, "scaled by client", **model.factors() | {"do_scaling": off})
        yield decode_case(model, x, wish, family, input_tensor_type="base64")
        yield decode_case(model, x, wish, family, output_tensor_type="base64")
        alone = decode_case(model, x, wish, family, shift_factor=None)
        zero = decode_case(model, x, wish, family, shift_factor=0.0)
        alone.meant = zero.meant = x.float() / model.factor
        yield from (alone, zero)


def decode_cases():
    for family in [decode_everything, decode_sizes, decode_batches, decode_beyond_range, decode_spellings]:
        yield from family()


# Encoding: pictures in every mode, tensors in every dtype and range.

MODES = ["RGB", "RGBA", "L", "LA", "P", "P transparent", "1"]


def picture(mode, width, height):
    """Smooth colours and a hard edge, in a mode of Pillow's."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rgb = np.stack([128 + 100 * np.sin(x / 5 + y / 9), 128 + 90 * np.cos(y / 4), 255 * x / width], -1)
    rgb[height // 2 :, : width // 3] = (250, 40, 30)
    image = Image.fromarray(np.rint(rgb).astype(np.uint8))
    if mode == "P transparent":
        image = image.quantize(13)
        image.info["transparency"] = 3
    elif mode == "P":
        image = image.quantize(13)
    elif mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.rint(255 * y / height).astype(np.uint8)))
    return image if mode.startswith("P") else image.convert(mode)


def encode_factors(model):
    """Every subset of the model's own factors."""
    own = list(model.factors().items())
    return [dict(some) for count in range(len(own) + 1) for some in itertools.combinations(own, count)]


def encode_case(model, subject, family, options):
    if isinstance(subject, Image.Image):
        meant = reference.picture_pixels(subject)
        what = f"{subject.mode}{' transparent' * ('transparency' in subject.info)} {subject.width}x{subject.height}"
    else:
        meant = reference.tensor_pixels(subject)
        what = f"{label(subject.dtype)} {list(subject.shape)} from {-1 if subject.min() < 0 else 0}"
    return Case("encode", family, f"{model.name} {what} {options or 'raw'}", model, subject, options, meant)


def encode_pictures():
    for model, mode in itertools.product(MODELS, MODES):
        for size in [(48, 32), (37, 29), (8, 8), (15, 50)]:
            for options in encode_factors(model):
                yield encode_case(model, picture(mode, *size), f"encode {model.name}, {mode} pictures", options)


def pixel_tensor(dtype, low, height, width, batch=1):
    """Uniform in low..1, of which 0 and -1 are the ranges that the server tells apart."""
    x = torch.rand(batch, 3, height, width, generator=seeded(low, height, width, batch)) * (1 - low) + low
    return (x * 255).round().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def encode_tensors():
    kinds = [(dtype, low) for dtype in DTYPES for low in (0, -1)] + [(torch.uint8, 0)]
    for model, (dtype, low) in itertools.product(MODELS, kinds):
        for height, width, batch in [(32, 48, 1), (29, 37, 1), (8, 8, 1), (16, 24, 2)]:
            for options in encode_factors(model):
                x = pixel_tensor(dtype, low, height, width, batch)
                yield encode_case(model, x, f"encode {model.name}, {label(dtype)} tensors", options)


def encode_cases():
    yield from encode_pictures()
    yield from encode_tensors()


# What the server must refuse.


def refused_latents():
    """(name, latents, options, wish): each is wrong in one way only."""
    x, tokens = torch.ones(1, 4, 4, 6), torch.ones(1, 6, 16)
    yield "five channels", torch.ones(1, 5, 4, 6), {}, PNG
    yield "two dimensions", torch.ones(4, 6), {}, FLOAT
    yield "five dimensions", torch.ones(1, 4, 1, 4, 6), {}, FLOAT
    yield "no latents at all", torch.ones(0, 4, 4, 6), {}, FLOAT
    yield "packed latents of another size", tokens, {"height": 64, "width": 64}, UINT8
    yield "packed latents of another model", torch.ones(1, 6, 64), {"height": 32, "width": 48}, FLOAT
    yield "packed latents, negative height", tokens, {"height": -32, "width": 48}, FLOAT
    yield "latents of 8 bits", x.to(torch.uint8), {}, FLOAT
    yield "latents of 64 bits", x.double(), {}, FLOAT
    yield "not a number", x * torch.nan, {}, PNG
    yield "infinity", x * torch.inf, {}, FLOAT
    yield "factor zero", x, {"scaling_factor": 0.0}, FLOAT
    yield "factor not a number", x, {"scaling_factor": float("nan")}, FLOAT
    yield "an unknown output", x, {"output_type": "gif"}, FLOAT
    yield "mp4 from a picture model", x, {"output_type": "mp4", "return_type": "mp4"}, FLOAT


def refused_pictures():
    yield "four channels", torch.ones(1, 4, 16, 16)
    yield "two dimensions", torch.ones(16, 16)
    yield "pixels of 64 bits", torch.ones(1, 3, 16, 16).double()
    yield "not a number", torch.ones(1, 3, 16, 16) * torch.nan
    yield "a tensor without a block", torch.ones(1, 3, 7, 16)
    yield "a picture without a block", picture("RGB", 16, 7)


def refusals():
    sd1, nobody = MODELS[0], Model("no-such-model", "", 4, torch.float16, 1.0)
    for name, x, options, wish in refused_latents():
        yield Case("decode", "decode, refused", name, sd1, x, sd1.factors() | options, wish=wish)
    for name, subject in refused_pictures():
        yield Case("encode", "encode, refused", name, sd1, subject, sd1.factors())
    yield Case("decode", "decode, refused", "an unknown model", nobody, torch.ones(1, 4, 4, 6), {}, wish=FLOAT)
    yield Case("encode", "encode, refused", "an unknown model", nobody, picture("RGB", 16, 16), {})


def versions():
    return f"diffusers {diffusers.__version__}, torch {torch.__version__}"
