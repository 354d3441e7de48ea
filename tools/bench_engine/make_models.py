#!/usr/bin/env python3
"""Writes autoencoders of full size with random weights, for measuring: what they compute means nothing, what it costs is real.

    make_models.py FOLDER [NAME ...]         (needs torch, diffusers, safetensors, numpy)

Names are sd-v1, sd-xl, flux and taesd; without any, all four are written, 0.9 GB. Each becomes FOLDER/NAME as
`save_pretrained` writes it, with the architecture of the published config.json and the type the weights are published in.
Weights, norms and biases are random by a seed, the last layer is scaled so that normal latents give pictures between -1 and
1 for the most part: no infinity, no denormal, in half precision neither. The same seed and torch give the same files.
"""
import argparse
import pathlib
import sys

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from kl import draw, sow

# The autoencoder of Stable Diffusion 1, which the later ones differ from in numbers alone.
KL = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "force_upcast": False,
}
TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [64] * 4,
    "decoder_block_out_channels": [64] * 4,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "act_fn": "relu",
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,
}
XL = {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
FLUX = {
    **XL,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
MODELS = {
    "sd-v1": (AutoencoderKL, KL, torch.float32),
    "sd-xl": (AutoencoderKL, {**KL, **XL}, torch.float32),
    "flux": (AutoencoderKL, {**KL, **FLUX}, torch.bfloat16),
    "taesd": (AutoencoderTiny, TINY, torch.float32),
}


@torch.no_grad()
def seeded(name):
    """A model of which every parameter is drawn."""
    sow(name)
    model_class, config, dtype = MODELS[name]
    model = model_class(**config).eval()
    draw(model)
    last = model.decoder.conv_out if model_class is AutoencoderKL else model.decoder.layers[-1]
    spread = model.decode(torch.randn(1, config["latent_channels"], 16, 16)).sample.std()
    last.weight.mul_(0.45 / spread)
    last.bias.mul_(0.45 / spread)
    return model if dtype is torch.float32 else model.to(dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of " + ", ".join(MODELS))
    arguments = parser.parse_args()
    names = arguments.names or list(MODELS)
    if unknown := sorted(set(names) - set(MODELS)):
        parser.error(f"no model is called {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for name in names:
        model = seeded(name)
        model.save_pretrained(arguments.folder / name, safe_serialization=True)
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"{arguments.folder / name}: {parameters:.1f} million parameters", file=sys.stderr)


if __name__ == "__main__":
    main()
