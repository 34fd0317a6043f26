"""The tables of docs/scaling.md: memory, bytes and expected efficiency on many GPUs, from a model, not measured.

    python benchmarks/scaling_model.py

A step is the networks' arithmetic at a share of a GPU's peak, and what is sent: inside a host, between hosts, and a
latency for every collective. What can be hidden is a share of the arithmetic; the truth lies between both columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from mst.config.load import override
from mst.config.schema import RunConfig
from mst.model.build import own_sizes
from mst.parallel.traffic import HOST, ParameterCounts, bytes_sent, held_by
from mst.planning.measuring import prepare_without_images
from mst.planning.scaling import device_plans
from mst.planning.simulation import meta_pair
from mst.recipes import base_config

PEAK = 989e12
"""bfloat16 operations a second of an H100 SXM, dense (NVIDIA's data sheet)."""
UTILISATION = {"S": 0.25, "L": 0.40, "g": 0.45}
"""Share of the peak that the arithmetic reaches: an assumption; narrow blocks are bound by memory."""
INSIDE = 450e9
"""Bytes a second that a GPU sends over NVLink 4 (900 GB/s in both directions, NVIDIA's data sheet)."""
NETWORKS = {"8 x 400 Gb": 400e9, "100 Gb": 12.5e9}
"""Bytes a second that a host sends: a port of InfiniBand NDR for each GPU, or one Ethernet port."""
REACHED = 0.8
"""Share of a link's rate that collectives of large buffers reach: an assumption."""
LATENCY = 15e-6
"""Seconds of a collective beside its bytes, for each doubling of the devices: an assumption for launch and hops."""
BUCKET = 25e6
"""Bytes of a bucket of DDP's gradients (torch's default)."""
HIDDEN = {"ddp": 0.25, "fsdp2": 0.5}
"""Share of the arithmetic behind which sends can hide: DDP's gradients behind the last part's backward pass; FSDP2's
besides behind the teacher's and the first part's forward passes."""
NETS = {"S": ("vit_small_patch16_224", 96), "L": ("vit_large_patch16_224", 96), "g": ("vit_giant_patch14_clip_224", 98)}
"""Backbone, and side of a local crop."""
BATCH, PROTOTYPES = 4096, 65536
DEVICES = (8, 64, 1024)


@dataclass(frozen=True)
class Net:
    """One network and what a step of it takes."""

    name: str
    config: RunConfig
    counts: ParameterCounts
    operations: float  # of an image
    groups: (
        int  # that FSDP2 gathers: blocks, the rest of the backbone, the head, for student and teacher, and the decoder
    )


def net(name: str) -> Net:
    """Return a network with DINO's crops, two global and six local ones."""
    backbone, side = NETS[name]
    config = override(
        base_config("deit-small-in1k-100ep"),
        {
            "model.backbone": backbone,
            "model.prototypes": PROTOTYPES,
            "views.local_size": side,
            "train.batch_size": BATCH,
            "runtime.precision": "bf16",
        },
    )
    setup = prepare_without_images(config)
    own, views = own_sizes(setup.spec.name), config.views
    tokens = [(size[0] // own.patch_size) ** 2 + 1 for size in (setup.plan.global_size, setup.plan.local_size)]
    forward = [2 * own.parameters * count + 4 * own.depth * own.width * count**2 for count in tokens]
    whole, small = views.global_crops * forward[0], views.local_crops * forward[1]
    counts = ParameterCounts.of(meta_pair(setup))
    return Net(name, config, counts, whole + 3 * (whole + small), 2 * (own.depth + 2) + 1)


def step_seconds(found: Net, devices: int, engine: str, network: float) -> tuple[float, float, float]:
    """Return the seconds of a step: its arithmetic alone, with sends hidden as far as they can be, with none hidden."""
    arithmetic = found.operations * BATCH / devices / (PEAK * UTILISATION[found.name])
    sent = bytes_sent(found.counts, devices, engine, compute=2, prototypes=PROTOTYPES)  # type: ignore[arg-type]
    parts, hosts = held_by(devices, engine), devices // HOST  # type: ignore[arg-type]
    inside = (sum(sent.values()) if hosts == 1 or engine == "ddp" else sent["weights"] + sent["gradients"]) / INSIDE
    crossing = 8 * found.counts.learning * (hosts - 1) / hosts / network  # all gradients leave a host and come in
    calls = (
        4 * found.counts.learning / BUCKET if engine == "ddp" else 1.5 * found.groups + found.groups / 2 * (hosts > 1)
    )
    latency = calls * LATENCY * log2(devices if engine == "ddp" else parts)
    sending = (inside + crossing) / REACHED + latency
    return arithmetic, arithmetic + max(0.0, sending - HIDDEN[engine] * arithmetic), arithmetic + sending


def main() -> None:
    """Print all tables."""
    nets = [net(name) for name in NETS]
    print("| network | parameters that learn | teacher | GFLOP an image |\n|---|---|---|---|")
    for each in nets:
        print(
            f"| {each.name} | {each.counts.learning / 1e6:,.0f} M | {each.counts.teacher / 1e6:,.0f} M | "
            f"{each.operations / 1e9:,.0f} |"
        )
    print("\n| network | GPUs | engine | GB held | GB held, recomputed | GB sent |\n|---|---|---|---|---|---|")
    for each in nets:
        plans = device_plans(prepare_without_images(each.config), DEVICES)
        for plain, again in zip(plans[::2], plans[1::2], strict=True):
            held = f"{plain.total / 1e9:.1f} | {again.total / 1e9:.1f}"
            print(
                f"| {each.name} | {plain.devices} | {plain.sharding} | {held} | {sum(plain.sent.values()) / 1e9:.2f} |"
            )
    print("\n| network | GPUs | engine | images/s a GPU alone |" + "".join(f" {name} |" for name in NETWORKS))
    print("|---|---|---|---|" + "---|" * len(NETWORKS))
    for each in nets:
        for devices in DEVICES:
            for engine in ("ddp", "fsdp2"):
                times = [step_seconds(each, devices, engine, network) for network in NETWORKS.values()]
                cells = "".join(f" {alone / exposed:.0%} to {alone / hidden:.0%} |" for alone, hidden, exposed in times)
                print(f"| {each.name} | {devices} | {engine} | {BATCH / devices / times[0][0]:,.0f} |{cells}")


if __name__ == "__main__":
    main()
