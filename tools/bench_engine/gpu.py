#!/usr/bin/env python3
"""The engine on an NVIDIA GPU beside PyTorch on the same: first whether the numbers agree, then what they cost, in turns.

    python3 tools/bench_engine/gpu.py --latentgate target/cuda/release/latentgate

For a machine with a GPU, Python and a PyTorch for it, and no Rust: the program is built elsewhere (tools/cuda/build.sh) and finds
CUDA's libraries where PyTorch has them. Models are of full size with random weights (kl.py), 0.9 GB in --folder.

What is done, in this order, until --minutes are over; what was not reached is named:
  1. parity: answers at 256 x 256 beside PyTorch's in f32 (TF32 off), as relative L2 distances, PyTorch's own in the same
     precision beside them; no NaN; the bytes made on the GPU beside those of the f16 numbers by the protocol's formula;
  2. speed: each model, task, size and precision, then batches. A process of ours loads, runs once and then --runs times;
     PyTorch (channels_last, inference_mode, cudnn.benchmark) does as much in a process that stays; --rounds in turns. Latency is
     from numbers on the host to pixels (3 bytes each) or latents (f32) on the host. torch.compile takes a minute for each
     shape, so that it is measured where --compile says: `first` (one shape), `all` or `none`.
Memory of ours is by how much the whole GPU's use grew at the peak, as NVML tells it, so nobody else should be on it; PyTorch's is
what its allocator had reserved, and what its process took of the GPU when it began. Weights and CUDA itself are in both.

--raw FILE gets a line of JSON for everything that was measured. --table FILE prints the tables of such a file and needs no GPU;
--check tests this script by itself on the CPU.
"""
import argparse
import ctypes
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from gpu_tables import COMPILED, EAGER, OURS, tables

HERE = pathlib.Path(__file__).resolve().parent
BOUNDS = {"f32": 1e-4, "f16": 2e-2, "bf16": 2e-2}


def say(line):
    print(line, file=sys.stderr, flush=True)


def listed(choices=None, kind=str):
    def parse(text):
        words = text.split(",")
        if choices and (unknown := sorted(set(words) - set(choices))):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: wanted of {', '.join(choices)}")
        return [kind(word) for word in words]

    return parse


def arguments_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["sd-v1", "sd-xl", "flux"]
    parser.add_argument("--latentgate", type=pathlib.Path, default=HERE.parents[1] / "target/cuda/release/latentgate")
    parser.add_argument("--model", type=listed(names), default=",".join(names), help="default: all three")
    parser.add_argument("--task", type=listed(["decode", "encode"]), default="decode,encode", help="default: both")
    parser.add_argument("--size", type=listed(kind=int), default="1024,512,2048", help="default: 1024,512,2048")
    parser.add_argument("--precision", type=listed(list(BOUNDS)), default="f16,bf16", help="default: f16,bf16")
    parser.add_argument("--batch", type=listed(kind=int), default="1,2,4", help="above 1 at 512; default: 1,2,4")
    parser.add_argument("--compile", choices=["first", "all", "none"], default="first", help="default: first")
    parser.add_argument("--rounds", type=int, default=2, help="default: 2")
    parser.add_argument("--runs", type=int, default=5, help="of a process, after its first; default: 5")
    parser.add_argument("--minutes", type=float, default=10.0, help="nothing is begun after so many; default: 10")
    parser.add_argument("--device", type=int, default=0, help="ordinal of the GPU; default: 0")
    parser.add_argument("--folder", type=pathlib.Path, help="where models are kept; default: a temporary one")
    parser.add_argument("--raw", type=pathlib.Path, help="file that lines of JSON are appended to")
    parser.add_argument("--skip-parity", action="store_true")
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="print the tables of a --raw file")
    parser.add_argument("--check", action="store_true", help="test this script; needs torch, no GPU")
    parser.add_argument("--torch-worker", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.runs < 1:
        parser.error("--rounds and --runs: at least 1")
    if any(size % 8 or size < 64 for size in arguments.size):
        parser.error("--size: multiples of 8, from 64 on")
    return arguments


# === the GPU and the program ===


class Memory:
    """Peak of the GPU's memory in use, above what was in use before; `None` where NVML does not tell."""

    def __init__(self, device):
        self.device, self.library = device, None
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            self.handle = ctypes.c_void_p()
            if library.nvmlInit_v2() == 0:
                if library.nvmlDeviceGetHandleByIndex_v2(device, ctypes.byref(self.handle)) == 0:
                    self.library = library
        except OSError:
            say("no libnvidia-ml.so.1: memory is unknown")

    def used(self):
        numbers = (ctypes.c_ulonglong * 3)()
        if self.library is None or self.library.nvmlDeviceGetMemoryInfo(self.handle, numbers) != 0:
            return None
        return numbers[2]

    def __enter__(self):
        self.before = self.most = self.used()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while self.before is not None and not self.over.wait(0.005):
            self.most = max(self.most, self.used() or 0)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def peak(self):
        return None if self.before is None else self.most - self.before


def libraries():
    """Where PyTorch's wheels have CUDA's libraries."""
    found = []
    for path in sys.path:
        found += sorted(str(it) for it in pathlib.Path(path).glob("nvidia/*/lib") if it.is_dir())
    return found


def environment(arguments):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LATENTGATE")}
    paths = [*libraries(), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {**inherited, "LATENTGATE__ENGINE__DEVICE": f"cuda:{arguments.device}", "LD_LIBRARY_PATH": ":".join(paths)}


def ours(arguments, cell, *more):
    """What `latentgate bench engine` measures."""
    argv = [str(arguments.latentgate), "bench", "engine", cell["folder"], "--task", cell["task"]]
    argv += ["--size", str(cell["size"]), "--batch", str(cell["batch"]), "--precision", cell["precision"]]
    argv += ["--runs", str(cell["runs"]), "--memory", "1TiB", "--json", *more]
    done = subprocess.run(argv, env=environment(arguments), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} failed:\n{done.stderr}{done.stdout}")
    found = json.loads(done.stdout)
    if found["precision"] != cell["precision"] or not found["device"].startswith("cuda"):
        raise RuntimeError(f"asked for {cell['precision']} on a GPU, got {found['precision']} on {found['device']}")
    return found


# === PyTorch ===


def torch_worker(folder, commands, answers, device):
    """Runs what it is told, a line of JSON each, until there is no more."""
    import torch

    import kl

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    name = pathlib.Path(folder).name
    latents, has_quant, _ = kl.MODELS[name]
    weights = {key: value.float() for key, value in kl.read(f"{folder}/diffusion_pytorch_model.safetensors").items()}
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    models, compiled, begun = {}, {}, []
    of_process = Memory(int(device.split(":")[1])) if device != "cpu" else None

    def memory():
        """Of this process; it is asked once before there is anything on the GPU."""
        if of_process is None or of_process.used() is None:
            return None
        if not begun:
            before = of_process.used()
            torch.zeros(1, device=device)
            torch.cuda.synchronize()
            begun.append(of_process.used() - before - torch.cuda.memory_reserved())
        return begun[0] + torch.cuda.max_memory_reserved()

    def model_of(precision):
        if precision not in models:
            models.clear()
            compiled.clear()
            model = kl.AutoencoderKL(latents, has_quant)
            model.load_state_dict(weights)
            models[precision] = model.eval().to(device, dtypes[precision]).to(memory_format=torch.channels_last)
        return models[precision]

    def run(call, cell, x):
        x = x.to(device, dtypes[cell["precision"]]).contiguous(memory_format=torch.channels_last)
        y = call(x)
        if cell["task"] == "decode" and not cell.get("keep"):
            y = (y * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            return y.cpu()
        return y.float().contiguous().cpu()

    for line in commands:
        cell = json.loads(line)
        memory()
        model = model_of(cell["precision"])
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        call = getattr(model, cell["task"])
        if cell.get("compiled"):
            key = cell["task"], cell["size"], cell["batch"]
            call = compiled.setdefault(key, torch.compile(call))
        with torch.inference_mode():
            if "keep" in cell:
                kept = kl.read(cell["keep"])
                want = run(call, cell, kept["input"])
                torch.save(want, cell["into"])
                found = {"finite": all(bool(it.isfinite().all()) for it in (kept["answer"], want))}
            else:
                side = cell["size"] // 8 if cell["task"] == "decode" else cell["size"]
                x = torch.randn(cell["batch"], latents if cell["task"] == "decode" else 3, side, side)
                walls = []
                for _ in range(cell["runs"] + 1):
                    began = time.perf_counter()
                    run(call, cell, x)
                    walls.append(time.perf_counter() - began)
                found = {"wall_first_seconds": walls[0], "wall_median_seconds": statistics.median(walls[1:])}
        found["memory_bytes"] = memory()
        if device != "cpu":
            torch.cuda.empty_cache()
        print(json.dumps(found), file=answers, flush=True)


class Torch:
    """A process that has PyTorch and one model."""

    def __init__(self, arguments, folder):
        argv = [sys.executable, str(HERE / "gpu.py"), "--torch-worker", str(folder), "--device", str(arguments.device)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, cell):
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("PyTorch's process ended; what it says stands above")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# === what is measured ===


def shown_bytes(torch, halves):
    """What the protocol's servers make of f16 numbers `[n, 3, h, w]`: each operation rounded to f16, then to a byte."""
    unit = (halves.half() * 0.5 + 0.5).clamp(0, 1)
    return (unit.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def parity(arguments, record, torch, kl, name, folder, other):
    """Distances of each precision and task from f32 by PyTorch."""
    with tempfile.TemporaryDirectory() as scratch:
        for task in arguments.task:
            for precision in ["f32", "f16", "bf16"]:
                cell = {"folder": str(folder), "task": task, "size": 256, "batch": 2, "runs": 1, "precision": precision}
                kept, exact, same = (f"{scratch}/{it}" for it in ["kept.safetensors", "exact.pt", "same.pt"])
                ours(arguments, cell, "--save", kept)
                found = other.ask({**cell, "precision": "f32", "keep": kept, "into": exact})
                want, got = torch.load(exact), kl.read(kept)["answer"].float()
                line = {"kind": "parity", "model": name, "task": task, "precision": precision, "finite": found["finite"]}
                line["distance"] = float((got - want).norm() / want.norm())
                if precision != "f32":
                    other.ask({**cell, "keep": kept, "into": same})
                    line["distance_of_torch"] = float((torch.load(same) - want).norm() / want.norm())
                if task == "decode":
                    ours(arguments, cell, "--answer", "f16", "--save", kept)
                    shown = shown_bytes(torch, kl.read(kept)["answer"])
                    ours(arguments, cell, "--answer", "uint8", "--save", kept)
                    line["bytes_apart"] = int((kl.read(kept)["answer"] != shown).sum())
                line["holds"] = holds(line)
                record(line)


def holds(line):
    is_near = line["distance"] <= BOUNDS[line["precision"]]
    return bool(line["finite"] and is_near and line.get("bytes_apart", 0) == 0)


def cells_of(arguments):
    """What is measured, the most telling first."""
    sizes = [(size, 1) for size in arguments.size] + [(512, batch) for batch in arguments.batch if batch > 1]
    for size, batch in sizes:
        for task in arguments.task:
            for precision in arguments.precision:
                for name in arguments.model:
                    yield {"model": name, "task": task, "size": size, "batch": batch, "precision": precision}


def speed(arguments, record, memory, cell, others, chance):
    everybody = [OURS, EAGER]
    is_first = not getattr(arguments, "has_compiled", False)
    if arguments.compile == "all" or (arguments.compile == "first" and is_first):
        arguments.has_compiled = True
        everybody.append(COMPILED)
    cell = {**cell, "runs": arguments.runs, "folder": str(arguments.folder / cell["model"])}
    for round_ in range(1, arguments.rounds + 1):
        for who in chance.sample(everybody, len(everybody)):
            line = {"kind": "speed", "who": who, "round": round_, **{k: v for k, v in cell.items() if k != "folder"}}
            if who == OURS:
                with memory:
                    found = ours(arguments, cell, *(["--answer", "uint8"] if cell["task"] == "decode" else []))
                found["memory_bytes"] = memory.peak()
            else:
                found = others[cell["model"]].ask({**cell, "compiled": who == COMPILED})
            line["wall_first_seconds"] = found["wall_first_seconds"]
            line["wall_median_seconds"] = found["wall_median_seconds"]
            line["memory_bytes"] = found["memory_bytes"]
            record(line)


# === the whole ===


def measure(arguments):
    began = time.monotonic()
    if not arguments.latentgate.is_file():
        sys.exit(f"{arguments.latentgate}: not there; build it (tools/cuda/build.sh), or say --latentgate")
    try:
        import torch
    except ImportError:
        sys.exit("this Python has no torch; run the script with one that has a PyTorch for CUDA")
    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no NVIDIA GPU here: nothing to measure (--check and --table need none)")
    import kl

    lines = []

    def record(line):
        lines.append(line)
        text = json.dumps(line)
        say(text)
        if arguments.raw:
            with arguments.raw.open("a") as raw:
                raw.write(text + "\n")

    version = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    record({"kind": "machine", "text": f"{torch.cuda.get_device_name(arguments.device)}; {version}"})
    temporary = None
    if arguments.folder is None:
        temporary = tempfile.TemporaryDirectory()
        arguments.folder = pathlib.Path(temporary.name)
    others, memory, chance = {}, Memory(arguments.device), random.Random(1)
    try:
        for name in arguments.model:
            if not (arguments.folder / name / "config.json").is_file():
                say(f"drawing {name}")
                kl.save(arguments.folder / name, name, kl.seeded(name))
            others[name] = Torch(arguments, arguments.folder / name)
            if not arguments.skip_parity:
                given = arguments, record, torch, kl, name, arguments.folder / name, others[name]
                attempt(record, f"parity of {name}", parity, *given)
        for cell in cells_of(arguments):
            told = " ".join(str(it) for it in cell.values())
            if time.monotonic() - began > arguments.minutes * 60:
                record({"kind": "left", "text": told})
                continue
            attempt(record, told, speed, arguments, record, memory, cell, others, chance)
    except KeyboardInterrupt:
        say("stopped: what there is so far")
    finally:
        for other in others.values():
            other.close()
        print("\n".join(tables(lines)))
        if temporary:
            temporary.cleanup()
    broken = [line for line in lines if line["kind"] == "failed" or not line.get("holds", True)]
    sys.exit(1 if broken else 0)


def attempt(record, told, work, *given):
    """One failure is told and does not end the rest."""
    try:
        work(*given)
    except RuntimeError as error:
        record({"kind": "failed", "text": f"{told}: {error}"})


def main(argv=None):
    arguments = arguments_of(argv)
    if arguments.torch_worker:
        # Answers go out here alone: whatever else is printed is for people.
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        torch_worker(arguments.torch_worker, sys.stdin, answers, f"cuda:{arguments.device}")
    elif arguments.table:
        print("\n".join(tables([json.loads(line) for line in arguments.table.read_text().splitlines()])))
    elif arguments.check:
        import gpu_check

        gpu_check.check()
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
