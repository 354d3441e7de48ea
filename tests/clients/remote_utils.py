#!/usr/bin/env python3
"""The real client against a running latentgate: diffusers' remote_decode and remote_encode in every combination.

    remote_utils.py --url http://127.0.0.1:8790 --models tests/fixtures/models

The server must know the models `sd1`, `sdxl` and `flux-tiny`, which are the folders sd1, sdxl and flux of --models, at
URL/decode/MODEL and URL/encode/MODEL. Whatever the client returns is compared with PyTorch on the same weights; how far
they may differ is said in compare.py, what is called in combinations.py. What the server must refuse has to reach the
user as RuntimeError({"error": "..."}).

Prints a line for each family of combinations. Exit status 1 if anything differs, 2 if the server cannot be reached.
"""
import argparse
import collections
import faulthandler
import itertools
import os
import pathlib
import sys

import numpy as np
import requests
import torch
from PIL import Image

import combinations
import compare
import reference
from compare import Difference, require

MODELS = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "models"
SHOWN = 20


def as_arrays(pictures):
    """What the client returned as pictures, one or a list: an array for each."""
    pictures = pictures if isinstance(pictures, list) else [pictures]
    require(all(isinstance(p, Image.Image) for p in pictures), f"pictures were wanted, got {pictures}")
    require(all(p.mode == "RGB" for p in pictures), f"modes {[p.mode for p in pictures]}, wanted RGB")
    return [np.asarray(p) for p in pictures]


def check_picture(wish, got, want):
    """A reply that was a picture file: the first of the batch, in the format asked for."""
    require(isinstance(got, Image.Image), f"a picture was wanted, got {type(got).__name__}")
    require(got.format == wish.reply(), f"format {got.format}, wanted {wish.reply()}")
    check = compare.jpeg if wish.reply() == "jpeg" else compare.pixels
    check(as_arrays(got)[0], want[0])


def check_decoded(wish, got, y):
    """What remote_decode returned for that wish against the decoder's output y."""
    reply, pixels = wish.reply(), reference.uint8(y).numpy()
    if reply in ("jpeg", "png"):
        check_picture(wish, got, pixels)
    elif wish.return_type == "pil":
        # The image processor of `pt` without partial_postprocess returns the first picture only.
        compare.pixels(np.stack(as_arrays(got)), pixels[:1] if reply == "float" else pixels)
    elif reply == "uint8":
        require(isinstance(got, torch.Tensor), f"a tensor was wanted, got {type(got).__name__}")
        compare.pixels(got.numpy(), pixels)
    else:
        compare.floats(got, y if reply == "float" else reference.unit(y).float())


def check_case(case, base, torch_models):
    want = case.expected(torch_models)
    got = case.call(base)
    if case.task == "decode":
        check_decoded(case.wish, got, want)
    else:
        compare.floats(got, want)


def check_refusal(case, base, _torch_models):
    try:
        got = case.call(base)
    except requests.JSONDecodeError as error:
        raise Difference(f"the error's body is not JSON: {error}") from None
    except RuntimeError as error:
        reason = error.args[0].get("error") if isinstance(error.args[0], dict) else None
        require(isinstance(reason, str) and reason, f'RuntimeError({error.args[0]!r}), wanted {{"error": "..."}}')
    else:
        raise Difference(f"answered with {type(got).__name__}, wanted a refusal")


def check_round_trip(case, base, torch_models):
    """Encodes, then decodes what came back with the same factors, as diffusers' own test does."""
    latents = case.call(base)
    size = (1, case.model.channels, case.subject.height // 8, case.subject.width // 8)
    require(tuple(latents.shape) == size, f"latents {list(latents.shape)}, wanted {list(size)}")
    back = combinations.decode_case(case.model, latents, combinations.PNG, case.family)
    got = back.call(base)
    require(got.size == (8 * size[3], 8 * size[2]), f"came back as {got.size}")
    check_picture(combinations.PNG, got, reference.uint8(back.expected(torch_models)).numpy())


def round_trips():
    for model, size in itertools.product(combinations.MODELS, [(48, 32), (64, 64), (61, 45)]):
        picture = combinations.picture("RGB", *size)
        yield combinations.encode_case(model, picture, f"round trip {model.name}", model.factors())


def everything():
    """(case, its check)."""
    for case in itertools.chain(combinations.decode_cases(), combinations.encode_cases()):
        yield case, check_case
    for case in round_trips():
        yield case, check_round_trip
    for case in combinations.refusals():
        yield case, check_refusal


def failure_of(case, check, base, torch_models):
    """None, or what is wrong. No answer at all ends the program."""
    try:
        check(case, base, torch_models)
    except Difference as difference:
        return str(difference)
    except requests.JSONDecodeError as error:
        return f"refused, and the error's body is not JSON: {error}"
    except requests.exceptions.RequestException as error:
        print(f"{case.family}: {case.name}: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        return f"refused: {error}"
    except Exception as error:  # whatever it is, it comes of an answer that the client cannot read
        return f"the client died of the answer: {type(error).__name__}: {error}"
    return None


def run(base, torch_models):
    """The number of combinations, and what failed."""
    families, failures = collections.defaultdict(list), []
    for case, check in everything():
        families[case.family].append((case, check))
    for family, members in families.items():
        problems = [(case.name, failure_of(case, check, base, torch_models)) for case, check in members]
        wrong = [f"{family}: {name}: {problem}" for name, problem in problems if problem]
        print(f"{family}: {len(members)} combinations, {f'{len(wrong)} wrong' if wrong else 'equal'}", flush=True)
        failures += wrong
    return sum(map(len, families.values())), failures


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--url", required=True, help="where the server listens, without a path")
    ap.add_argument("--models", default=MODELS, type=pathlib.Path, help="the folder of the checkpoints")
    ap.add_argument("--limit", type=float, default=1800, help="seconds after which a server that hangs is given up")
    args = ap.parse_args()
    faulthandler.dump_traceback_later(args.limit, exit=True)  # the client sets no timeout
    os.environ["no_proxy"] = "*"  # the server is the one named, whatever proxy the environment knows
    torch.set_num_threads(1)  # the server has the other core
    print(combinations.versions(), flush=True)
    total, failures = run(args.url.rstrip("/"), reference.Reference(args.models))
    for text in failures[:SHOWN]:
        print(text, file=sys.stderr)
    if failures:
        raise SystemExit(f"{len(failures)} of {total} combinations differ from PyTorch")
    print(f"{total} combinations, all equal to PyTorch")


if __name__ == "__main__":
    main()
