"""The method without the package's loop: views, student and teacher, losses, and your own ten lines of training.

Run it as `python examples/custom_loop.py`; it trains on images that it draws in memory.
"""

from __future__ import annotations

import torch

import mst
from mst.config.derive import derive
from mst.data.synthetic.scenes import SceneSet
from mst.model.pair import build_pair, ema_update
from mst.objective.dino import updated_center
from mst.objective.draws import StepDraws
from mst.objective.mst import mst_losses
from mst.objective.records import ObjectiveValues
from mst.runtime.seeding import generator
from mst.views.multicrop import MultiCrop
from mst.views.normalise import normalise
from mst.views.record import Views

STEPS, SEED = 8, 0


def main() -> list[float]:
    """Train for a few steps and return the losses."""
    config = mst.load_recipe("debug")
    scenes = SceneSet(seed=SEED, count=64, size=32)
    plan = derive(config, len(scenes))
    pair = build_pair(config.model, plan, channels=3, restoration=True, seed=SEED)
    optimizer = torch.optim.AdamW([p for p in pair.parameters() if p.requires_grad], lr=1e-3)
    values = ObjectiveValues.from_config(config.objective, teacher_temp=plan.teacher_temp)
    multi_crop, center = MultiCrop(config.views, channels=3), torch.zeros(1, plan.prototypes)
    losses = []

    for step in range(STEPS):
        indices = torch.arange(step * 8, step * 8 + 8) % len(scenes)
        pictures = [torch.from_numpy(scenes[i].image) for i in indices.tolist()]
        crops = multi_crop.batch(pictures, [generator(SEED, step, i) for i in range(len(pictures))])
        global_crops, local_crops = (normalise(part, plan.mean, plan.std) for part in crops)

        views = Views(global_crops, local_crops, indices)
        draws = StepDraws(SEED, step, range(len(indices)), batch=len(indices))
        output = mst_losses(pair, views, center, values, draws)
        optimizer.zero_grad()
        output.losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ema_update(pair.teacher, pair.student, plan.teacher_momentum)
        center = updated_center(center, output.teacher_logits, config.objective.center_momentum)

        losses.append(output.losses.total.item())
        print(f"step {step}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
