#!/usr/bin/env python3
"""What `latentgate bench engine` measures, with PyTorch and diffusers: the same noise in kind, the same counts, the same JSON.

    torch_vae.py MODEL [--task decode|encode] [--size 256,512] [--runs 3] [--threads N]
                 [--memory-format channels_last|contiguous] [--dtype f32|bf16] [--json]

MODEL is a diffusers directory (make_models.py writes some). It needs torch, diffusers, safetensors and numpy, and reads
nothing from a network. Each size has a first run, which is told apart, and then --runs more. Processor time is that of all
threads, in the program and in the kernel; memory is what is resident before the runs and at their peak, as Linux counts it
(the peak is set back before each size). Environment variables such as ATEN_CPU_CAPABILITY are PyTorch's own.
"""
import argparse
import ctypes
import gc
import json
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers  # noqa: E402
import torch  # noqa: E402

SEED = 20261127
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def say(line):
    print(line, file=sys.stderr, flush=True)


def size_of(text):
    """A side, or WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    try:
        width, height = int(width), int(height or width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a side such as 512, or 640x424") from None
    if width < 8 or height < 8 or width % 8 or height % 8:
        raise argparse.ArgumentTypeError(f"{text!r}: sides are multiples of 8 pixels")
    return width, height


def arguments_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--task", choices=["decode", "encode"], default="decode")
    parser.add_argument("--size", type=lambda text: [size_of(size) for size in text.split(",")], default="256,512")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are processors")
    parser.add_argument("--memory-format", choices=FORMATS, default="channels_last")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--json", action="store_true", help="an object a line for each size")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error("--runs: at least 1")
    if not (arguments.model / "config.json").is_file():
        parser.error(f"{arguments.model}: no config.json there; wanted a diffusers directory, such as make_models.py writes")
    return arguments


def memory(key):
    """Bytes of a line of /proc/self/status; none where there is no such file."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def rest():
    """Gives back what is free: what loading has left behind would pass for the runs' memory, or hide it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        say("the allocator of this system gives nothing back by order")


def forget_peak():
    """Whether the system lets the peak begin anew."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


def load(arguments):
    config = json.loads((arguments.model / "config.json").read_text())
    model_class = getattr(diffusers, config["_class_name"], None)
    if model_class is None:
        sys.exit(f"{arguments.model}: diffusers has no {config['_class_name']}")
    model = model_class.from_pretrained(arguments.model, torch_dtype=DTYPES[arguments.dtype], local_files_only=True)
    model = model.eval().to(memory_format=FORMATS[arguments.memory_format])
    # Weights may lie in the file until they are used, and are to be in memory before the first run.
    for tensor in model.state_dict().values():
        tensor.sum()
    return model


def run(model, task, value):
    """One answer in f32, as the other side gives it; and what it took."""
    began, cpu = time.perf_counter(), time.process_time()
    if task == "decode":
        answer = model.decode(value).sample
    else:
        encoded = model.encode(value)
        answer = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    answer = answer.float().contiguous()
    cost = time.perf_counter() - began, time.process_time() - cpu
    if not bool(answer.isfinite().all()):
        sys.exit("the answer holds NaN or infinity: try --dtype f32, or look at the weights")
    return cost


def measure(model, arguments, width, height):
    random = torch.Generator().manual_seed(SEED)
    if arguments.task == "decode":
        value = torch.randn(1, model.config.latent_channels, height // 8, width // 8, generator=random)
    else:
        value = torch.rand(1, 3, height, width, generator=random) * 2 - 1
    value = value.to(DTYPES[arguments.dtype]).contiguous(memory_format=FORMATS[arguments.memory_format])
    rest()
    is_peak_own, before = forget_peak(), memory("VmRSS")
    costs = []
    for index in range(arguments.runs + 1):
        costs.append(run(model, arguments.task, value))
        what = f"run {index} of {arguments.runs}" if index else "first run"
        say(f"{width}x{height}: {what}: {costs[-1][0]:.3f} s, {costs[-1][1]:.3f} s of processor time")
    (wall_first, cpu_first), (walls, cpus) = costs[0], zip(*costs[1:])
    return {
        "width": width,
        "height": height,
        "batch": 1,
        "wall_first_seconds": wall_first,
        "wall_median_seconds": statistics.median(walls),
        "wall_min_seconds": min(walls),
        "cpu_first_seconds": cpu_first,
        "cpu_median_seconds": statistics.median(cpus),
        "cpu_min_seconds": min(cpus),
        "megapixels_per_second": width * height / 1e6 / statistics.median(walls),
        "memory_before_bytes": before,
        "memory_peak_bytes": memory("VmHWM"),
        "memory_peak_of": "size" if is_peak_own else "process",
    }


def table(rows):
    def mib(count):
        return "unknown" if count is None else f"{count / 2**20:.1f} MiB"

    lines = [["SIZE", "FIRST", "MEDIAN", "MIN", "CPU", "MPIXEL/S", "MEMORY", "PEAK"]]
    for row in rows:
        times = ["wall_first_seconds", "wall_median_seconds", "wall_min_seconds", "cpu_median_seconds"]
        lines.append(
            [f"{row['width']}x{row['height']}"]
            + [f"{row[time]:.3f} s" for time in times]
            + [f"{row['megapixels_per_second']:.2f}", mib(row["memory_before_bytes"]), mib(row["memory_peak_bytes"])]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def main(argv=None):
    arguments = arguments_of(argv)
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    say(f"loading {arguments.model}")
    began = time.perf_counter()
    model = load(arguments)
    common = {
        "model": str(arguments.model),
        "class_name": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "task": arguments.task,
        "precision": arguments.dtype,
        "memory_format": arguments.memory_format,
        "threads": torch.get_num_threads(),
        "processors": len(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "version": f"torch {torch.__version__}, diffusers {diffusers.__version__}",
        "load_seconds": time.perf_counter() - began,
        "runs": arguments.runs,
    }
    rows = []
    with torch.inference_mode():
        for width, height in arguments.size:
            rows.append(measure(model, arguments, width, height))
            if arguments.json:
                print(json.dumps({**common, **rows[-1]}), flush=True)
    if not arguments.json:
        print(f"{common['model']}: {common['class_name']}, {common['parameters'] / 1e6:.1f} million parameters")
        print(f"{common['version']}; {common['precision']}, {common['memory_format']}, {common['cpu_capability']}")
        print(f"{common['threads']} threads on {common['processors']} processors")
        table(rows)


if __name__ == "__main__":
    main()
