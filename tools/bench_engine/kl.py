"""`AutoencoderKL` in plain PyTorch, under diffusers' names, for machines that have torch and nothing else.

`gpu.py --check` holds it to diffusers' own where that is installed.
"""
import json
import pathlib
import struct
import zlib

import torch
import torch.nn.functional as F
from torch import nn

SEED = 20261127
WIDTHS, LAYERS, GROUPS = [128, 256, 512, 512], 2, 32
# Channels of the latents, whether there are quant_conv and post_quant_conv, and the type that the weights are published in. None
# has `force_upcast`: sd-xl is measured as its weights are published that were made to fit f16.
MODELS = {
    "sd-v1": (4, True, torch.float32),
    "sd-xl": (4, True, torch.float32),
    "flux": (16, False, torch.bfloat16),
}
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}


def conv3(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Resnet(nn.Module):
    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs, 1e-6), conv3(inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outputs, 1e-6), conv3(outputs, outputs)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.conv_shortcut(x) if self.conv_shortcut is not None else x) + h


class Attention(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        n, c, h, w = x.shape
        y = self.group_norm(x.view(n, c, h * w) if x.is_contiguous() else x.reshape(n, c, h * w)).transpose(1, 2)
        q, k, v = (to(y).unsqueeze(1) for to in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + y.transpose(1, 2).reshape(n, c, h, w)


class Resample(nn.Module):
    def __init__(self, width, up):
        super().__init__()
        self.up, self.conv = up, conv3(width, width) if up else nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1)))


class Stage(nn.Module):
    def __init__(self, inputs, width, count, groups, resample, up):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width if j else inputs, width, groups) for j in range(count)])
        name = "upsamplers" if up else "downsamplers"
        self.name = name if resample else None
        if resample:
            setattr(self, name, nn.ModuleList([Resample(width, up)]))

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return getattr(self, self.name)[0](x) if self.name else x


class Mid(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Half(nn.Module):
    """The encoder, or the decoder."""

    def __init__(self, inputs, outputs, widths, layers, groups, up):
        super().__init__()
        self.up, order = up, widths[::-1] if up else widths
        self.conv_in, self.mid_block = conv3(inputs, order[0]), Mid(widths[-1], groups)
        blocks = [
            Stage(order[max(i - 1, 0)], width, layers + up, groups, i + 1 < len(order), up)
            for i, width in enumerate(order)
        ]
        setattr(self, "up_blocks" if up else "down_blocks", nn.ModuleList(blocks))
        self.conv_norm_out, self.conv_out = nn.GroupNorm(groups, order[-1], 1e-6), conv3(order[-1], outputs)

    def forward(self, x):
        x = self.conv_in(x)
        x = self.mid_block(x) if self.up else x
        for block in self.up_blocks if self.up else self.down_blocks:
            x = block(x)
        x = x if self.up else self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self, latents, has_quant, widths=WIDTHS, layers=LAYERS, groups=GROUPS):
        super().__init__()
        self.latents = latents
        self.encoder = Half(3, 2 * latents, widths, layers, groups, False)
        self.decoder = Half(latents, 3, widths, layers, groups, True)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1) if has_quant else None
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if has_quant else None

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z) if self.post_quant_conv is not None else z)

    def encode(self, x):
        """The mean."""
        moments = self.encoder(x)
        moments = self.quant_conv(moments) if self.quant_conv is not None else moments
        return moments[:, : self.latents]


def sow(name):
    """The same numbers each time, others for each name."""
    torch.manual_seed(SEED + zlib.crc32(name.encode()) % 100000)


def draw(model):
    """Every parameter: a norm or a bias left at its start would cost the same and prove less."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_(0.0, 0.1)
        elif parameter.dim() == 1:
            parameter.normal_(1.0, 0.2)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)


@torch.no_grad()
def seeded(name):
    """As make_models.py draws them: random by a seed, of a size that fits every precision."""
    latents, has_quant, dtype = MODELS[name]
    sow(name)
    model = AutoencoderKL(latents, has_quant).eval()
    draw(model)
    last = model.decoder.conv_out
    spread = model.decode(torch.randn(1, latents, 16, 16)).std()
    last.weight.mul_(0.45 / spread)
    last.bias.mul_(0.45 / spread)
    return model.to(dtype).float()


def config(name):
    latents, has_quant, _ = MODELS[name]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latents,
        "block_out_channels": WIDTHS,
        "layers_per_block": LAYERS,
        "norm_num_groups": GROUPS,
        "act_fn": "silu",
        "scaling_factor": 1.0,
        "force_upcast": False,
        "use_quant_conv": has_quant,
        "use_post_quant_conv": has_quant,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def save(folder, name, model):
    """A diffusers directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(name)))
    dtype = MODELS[name][2]
    tensors = {key: value.to(dtype).contiguous() for key, value in model.state_dict().items()}
    header, at = {}, 0
    for key, value in tensors.items():
        size = value.numel() * value.element_size()
        header[key] = {"dtype": TYPES[dtype], "shape": list(value.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            file.write(value.view(-1).view(torch.uint8).numpy().tobytes())


def read(path):
    """Tensors of a .safetensors file."""
    data = bytearray(pathlib.Path(path).read_bytes())
    length = struct.unpack_from("<Q", data)[0]
    types = {name: dtype for dtype, name in TYPES.items()}
    found = {}
    for key, it in json.loads(bytes(data[8 : 8 + length])).items():
        if key != "__metadata__":
            first, last = (8 + length + offset for offset in it["data_offsets"])
            raw = torch.frombuffer(data, dtype=torch.uint8, count=last - first, offset=first).clone()
            found[key] = raw.view(types[it["dtype"]]).reshape(it["shape"])
    return found
