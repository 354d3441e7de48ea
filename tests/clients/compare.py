"""How far an answer may be from what PyTorch says, each limit with its reason."""
import numpy as np
import torch

import reference

# Replies are float16 numbers (11 bits); the rest is the order of additions in another engine.
ABSOLUTE = RELATIVE = 2e-3
# Where float16 and then 8 bits are rounded, another order of additions may tip a value over an edge.
LEVELS, SHARE = 1, 0.005
# Another JPEG encoder than Pillow's, with the same tables, rounds its transforms differently.
RGB_DB, LUMA_DB = 3, 2


class Difference(Exception):
    """What came back is not what PyTorch says."""


def require(condition, text):
    if not condition:
        raise Difference(text)


def floats(got, want):
    """A float16 tensor against a float32 one."""
    require(isinstance(got, torch.Tensor), f"a tensor was wanted, got {type(got).__name__}")
    require(got.dtype == torch.float16, f"dtype {got.dtype}, wanted float16")
    require(got.shape == want.shape, f"shape {list(got.shape)}, wanted {list(want.shape)}")
    error = (got.float() - want).abs()
    beyond = error > ABSOLUTE + RELATIVE * want.abs()
    wrong = int(beyond.sum()) + int((~torch.isfinite(error)).sum())
    require(wrong == 0, f"{wrong} of {error.numel()} values differ, by up to {float(error.max()):.5f}")


def pixels(got, want):
    """Arrays of 8 bits."""
    got, want = np.asarray(got), np.asarray(want)
    require(got.dtype == np.uint8, f"dtype {got.dtype}, wanted uint8")
    require(got.shape == want.shape, f"shape {list(got.shape)}, wanted {list(want.shape)}")
    error = np.abs(got.astype(int) - want.astype(int))
    count = int(np.count_nonzero(error))
    require(error.max() <= LEVELS, f"{count} of {error.size} values differ, by up to {error.max()} levels")
    # A tiny picture may have its one value on an edge too.
    require(count <= max(1, SHARE * error.size), f"{count} of {error.size} values differ by one level")


def jpeg(got, want):
    """A decoded JPEG against the exact picture, measured by what Pillow's JPEG keeps of it."""
    got, want = np.asarray(got), np.asarray(want)
    require(got.shape == want.shape, f"shape {list(got.shape)}, wanted {list(want.shape)}")
    ours, pillows = reference.psnr(got, want), reference.pillow_jpeg_psnr(want)
    for what, mine, theirs, limit in zip(["", "luma "], ours, pillows, [RGB_DB, LUMA_DB]):
        require(mine >= theirs - limit, f"{what}{mine:.1f} dB from the exact picture, Pillow's JPEG {theirs:.1f} dB")
