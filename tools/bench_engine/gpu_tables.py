"""Tables in Markdown of what gpu.py records: a line of JSON for everything that was measured."""
import statistics

OURS, EAGER, COMPILED = "latentgate", "torch eager", "torch.compile"


def tables(lines):
    """Of everything that was recorded."""
    out = [line["text"] for line in lines if line["kind"] == "machine"]
    found = [line for line in lines if line["kind"] == "parity"]
    if found:
        out += ["", "| model | task | precision | distance from f32 | PyTorch's | bytes apart | |", "|---" * 7 + "|"]
    for line in found:
        theirs = f"{line['distance_of_torch']:.1e}" if "distance_of_torch" in line else ""
        row = [line["model"], line["task"], line["precision"], f"{line['distance']:.1e}", theirs]
        row += [str(line.get("bytes_apart", "")), "holds" if line["holds"] else "**DOES NOT HOLD**"]
        out.append(f"| {' | '.join(row)} |")
    groups = {}
    for line in lines:
        if line["kind"] == "speed":
            key = tuple(line[it] for it in ["model", "task", "size", "batch", "precision"])
            groups.setdefault(key, {}).setdefault(line["who"], []).append(line)
    if groups:
        head = ["model", "task", "size", "batch", "precision", "latentgate", "torch eager", "ratio", "torch.compile"]
        head += ["pictures/s: latentgate, eager", "GPU memory: latentgate, eager"]
        out += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key, sides in groups.items():
        wall = {who: statistics.median(it["wall_median_seconds"] for it in found) for who, found in sides.items()}
        row = [str(it) for it in key] + [milliseconds(wall.get(OURS)), milliseconds(wall.get(EAGER))]
        row.append(f"{wall[OURS] / wall[EAGER]:.2f}" if OURS in wall and EAGER in wall else "")
        row.append(milliseconds(wall.get(COMPILED)))
        row.append(", ".join(f"{key[3] / wall[who]:.1f}" if who in wall else "-" for who in (OURS, EAGER)))
        row.append(", ".join(mebibytes(sides.get(who, [])) for who in (OURS, EAGER)))
        out.append(f"| {' | '.join(row)} |")
    out += [f"not reached: {line['text']}" for line in lines if line["kind"] == "left"]
    out += [f"FAILED: {line['text']}" for line in lines if line["kind"] == "failed"]
    return out


def milliseconds(seconds):
    return "" if seconds is None else f"{seconds * 1e3:.1f} ms"


def mebibytes(found):
    sizes = [line["memory_bytes"] for line in found if line["memory_bytes"] is not None]
    return f"{max(sizes) / 2**20:.0f} MiB" if sizes else "unknown"
