"""Tests gpu.py by itself, on the CPU (`gpu.py --check`): its tables, its arguments, its PyTorch side, and kl.py beside diffusers."""
import io
import json
import pathlib
import tempfile

import torch

import gpu
import kl
from gpu_tables import COMPILED, EAGER, OURS, tables


def check():
    """All of it."""
    canned = [
        {"kind": "machine", "text": "a GPU"},
        {"kind": "parity", "model": "flux", "task": "decode", "precision": "f16", "distance": 1e-3, "finite": True,
         "distance_of_torch": 2e-3, "bytes_apart": 0, "holds": True},
        {"kind": "parity", "model": "flux", "task": "encode", "precision": "f32", "distance": 1.0, "finite": True,
         "holds": False},
    ]
    for who, wall, memory in [(OURS, 0.01, 2**30), (OURS, 0.03, 2**31), (EAGER, 0.04, None), (COMPILED, 0.02, 0)]:
        cell = {"model": "flux", "task": "decode", "size": 512, "batch": 2, "precision": "f16", "memory_bytes": memory}
        canned.append({"kind": "speed", "who": who, "wall_median_seconds": wall, **cell})
    canned.append({"kind": "left", "text": "flux decode 2048"})
    text = "\n".join(tables(canned))
    for wanted in ["| flux | decode | f16 | 1.0e-03 | 2.0e-03 | 0 | holds |", "**DOES NOT HOLD**", "not reached: flux",
                   "| 20.0 ms | 40.0 ms | 0.50 | 20.0 ms | 100.0, 50.0 | 2048 MiB, unknown |"]:
        assert wanted in text, f"{wanted} is not in\n{text}"
    assert not gpu.holds({"distance": float("nan"), "finite": False, "precision": "f32"})
    assert not gpu.holds({"distance": 0.0, "finite": True, "precision": "f16", "bytes_apart": 1})
    first = next(gpu.cells_of(gpu.arguments_of([])))
    assert first == {"model": "sd-v1", "task": "decode", "size": 1024, "batch": 1, "precision": "f16"}, first
    for wrong in [["--size", "100"], ["--model", "nobody"], ["--rounds", "0"]]:
        try:
            gpu.arguments_of(wrong)
        except SystemExit:
            continue
        raise AssertionError(f"{wrong} is taken")
    shown = gpu.shown_bytes(torch, torch.tensor([-1.0, 1.0, 0.0, 9.0, float("-inf"), 0.5]).reshape(1, 3, 1, 2))
    assert shown.flatten().tolist() == [0, 128, 0, 255, 255, 191], shown
    is_like_diffusers()
    with tempfile.TemporaryDirectory() as folder:
        checked_worker(pathlib.Path(folder))
    print("gpu.py: checked; nothing was measured")


def is_like_diffusers():
    try:
        import diffusers
    except ImportError:
        return print("NOT RUN: no diffusers here: kl.py is AutoencoderKL")
    for latents, has_quant in [(4, True), (16, False)]:
        small = {"block_out_channels": [8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1}
        theirs = diffusers.AutoencoderKL(
            latent_channels=latents, use_quant_conv=has_quant, use_post_quant_conv=has_quant, **small,
            down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        ).eval()
        model = kl.AutoencoderKL(latents, has_quant, [8, 16, 16], 1, 4).eval()
        model.load_state_dict(theirs.state_dict())
        with torch.inference_mode():
            z, x = torch.randn(2, latents, 6, 4), torch.randn(1, 3, 24, 40)
            torch.testing.assert_close(model.decode(z), theirs.decode(z).sample)
            torch.testing.assert_close(model.encode(x), theirs.encode(x).latent_dist.mode())


def checked_worker(folder):
    """PyTorch's process, on the CPU and with a small model in place of sd-v1."""
    kl.WIDTHS, kl.GROUPS = [8, 16], 4
    model = kl.AutoencoderKL(4, True, kl.WIDTHS, kl.LAYERS, kl.GROUPS).eval()
    kl.AutoencoderKL.__init__.__defaults__ = (kl.WIDTHS, kl.LAYERS, kl.GROUPS)
    kl.save(folder / "sd-v1", "sd-v1", model)
    read = kl.read(folder / "sd-v1/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(read[key], value) for key, value in model.state_dict().items())
    cells = [
        {"task": "decode", "size": 64, "batch": 2, "precision": "f32", "runs": 2},
        {"task": "encode", "size": 64, "batch": 1, "precision": "bf16", "runs": 1},
    ]
    answers = io.StringIO()
    gpu.torch_worker(folder / "sd-v1", [json.dumps(cell) for cell in cells], answers, "cpu")
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(found) == 2 and all(it["wall_median_seconds"] > 0 for it in found), found
