"""The MST step with a real pair: what each network is given, the losses, and DINO as a special case."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.config.schema import ModelConfig, ObjectiveConfig, RunPlan
from mst.errors import UsageError
from mst.model.backbone import Backbone
from mst.model.pair import TeacherStudent, build_pair
from mst.model.tokens import Summary, Tokens
from mst.objective.draws import StepDraws
from mst.objective.masking import ATTENTION_STRATEGIES, STRATEGIES
from mst.objective.mst import mst_losses
from mst.objective.records import ObjectiveValues, StepOutput
from mst.objective.statistics import Sums, statistic_sums, statistics_of
from mst.runtime.seeding import generator
from mst.views.record import Views
from reference import dino as dino_reference
from reference import restoration as restoration_reference

PROTOTYPES = 12
STD = (0.229, 0.224, 0.225)
VALUES = ObjectiveValues.from_config(ObjectiveConfig(), teacher_temp=0.04)
DINO = replace(VALUES, strategy="none", restoration_weight=0.0)


def tiny_pair(
    *, restoration: bool = True, size: tuple[int, int] = (32, 32), head_norm: str = "none", drop_path: float = 0.0
) -> TeacherStudent:
    model = ModelConfig(
        backbone="vit_tiny_patch16_224",
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        drop_path=drop_path,
        head_hidden=32,
        head_bottleneck=16,
        head_norm=head_norm,
    )
    plan = RunPlan.model_construct(global_size=size, local_size=(16, 16), prototypes=PROTOTYPES)
    pair = build_pair(model, plan, channels=3, restoration=restoration, seed=0)
    # A new pair's branches are equal: move the student so that mixing them up would show.
    with torch.no_grad():
        for index, parameter in enumerate(pair.student.parameters()):
            noise = torch.randn(parameter.shape, generator=generator("student", index))
            parameter.add_(0.05 * noise)
    return pair


def some_views(
    crops: int = 2, local_crops: int = 2, batch: int = 3, size: tuple[int, int] = (32, 32), seed: int = 0
) -> Views:
    source = generator("views", seed)
    return Views(
        global_crops=torch.randn(crops, batch, 3, *size, generator=source),
        local_crops=torch.randn(local_crops, batch, 3, 16, 16, generator=source),
        indices=torch.arange(batch),
    )


def double_views() -> Views:
    views = some_views()
    return Views(views.global_crops.double(), views.local_crops.double(), views.indices)


def some_draws(batch: int, step: int = 0) -> StepDraws:
    return StepDraws(seed=0, step=step, positions=range(batch), batch=batch)


def losses_of(
    pair: TeacherStudent, views: Views, center: Tensor, values: ObjectiveValues, step: int = 0, **options: Any
) -> StepOutput:
    return mst_losses(pair, views, center, values, some_draws(len(views.indices), step), **options)


def some_center() -> Tensor:
    return 0.1 * torch.randn(1, PROTOTYPES, generator=generator("center"))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class Spy(nn.Module):
    """A backbone that notes the calls it passes on."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.calls: list[tuple[tuple[int, ...], Tensor | None, bool]] = []

    def tokens(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Tokens:
        self.calls.append((tuple(images.shape), mask, importance))
        return self.backbone.tokens(images, mask, importance=importance)

    def summary(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Summary:
        self.calls.append((tuple(images.shape), mask, importance))
        return self.backbone.summary(images, mask, importance=importance)


def spied(pair: TeacherStudent) -> tuple[TeacherStudent, Spy, Spy]:
    student, teacher = Spy(pair.student.backbone), Spy(pair.teacher.backbone)
    for branch, spy in ((pair.student, student), (pair.teacher, teacher)):
        del branch.backbone
        branch.backbone = spy
    return pair, student, teacher


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("crops", "local_crops", "batch", "size"),
    [(2, 2, 3, (32, 32)), (2, 0, 3, (32, 32)), (2, 1, 1, (32, 32)), (3, 2, 2, (32, 16))],
)
def test_losses_equal_the_slow_definitions(
    strategy: str, crops: int, local_crops: int, batch: int, size: tuple[int, int]
) -> None:
    pair = tiny_pair(size=size)
    views = some_views(crops, local_crops, batch, size)
    values = replace(VALUES, strategy=strategy, mask_probability=0.6)
    center = some_center()
    output = losses_of(pair, views, center, values, keep=True)

    images = views.global_crops.flatten(0, 1)
    with torch.no_grad():
        _, teacher_logits = pair.teacher(images)
        tokens, global_logits = pair.student(images, output.mask)
        student_logits = [global_logits.unflatten(0, (crops, batch))]
        student_logits += [pair.student(crop)[1][None] for crop in views.local_crops]
        reconstruction = pair.decoder(tokens.patches, tokens.grid)
    teacher_logits = teacher_logits.unflatten(0, (crops, batch))
    probs = dino_reference.teacher_probabilities(teacher_logits.double().numpy(), center.numpy(), values.teacher_temp)
    distillation = dino_reference.self_distillation_loss(
        torch.cat(student_logits).double().numpy(), probs, values.student_temp
    )
    restoration = restoration_reference.mean_absolute_error(reconstruction.numpy(), images.numpy())

    torch.testing.assert_close(output.teacher_logits, teacher_logits)
    np.testing.assert_allclose(output.losses.self_distillation.item(), distillation, rtol=1e-4)
    np.testing.assert_allclose(output.losses.restoration.item(), restoration, rtol=1e-4)
    np.testing.assert_allclose(output.losses.total.item(), distillation + 0.6 * restoration, rtol=1e-4)
    check_statistics(output, views, probs, reconstruction)


def sums_of(output: StepOutput, views: Views) -> Sums:
    return statistic_sums(output, views.global_crops.flatten(0, 1), STD)


def check_statistics(output: StepOutput, views: Views, probs: np.ndarray, reconstruction: Tensor) -> None:
    mask = torch.zeros(len(reconstruction), 16, dtype=torch.bool) if output.mask is None else output.mask
    images, grid = views.global_crops.flatten(0, 1).numpy(), output.teacher.grid
    pixels = restoration_reference.pixel_mask(mask.numpy(), grid, 8)[:, : images.shape[2], : images.shape[3]]
    expected = {
        "teacher_entropy": dino_reference.mean_entropy(probs),
        "marginal_entropy": dino_reference.marginal_entropy(probs),
        "masked_share": mask.float().mean().item(),
        "psnr_masked": restoration_reference.psnr(reconstruction.numpy(), images, pixels, list(STD)),
        "psnr_visible": restoration_reference.psnr(reconstruction.numpy(), images, ~pixels, list(STD)),
        "psnr_fill": restoration_reference.psnr(
            restoration_reference.mean_colour_fill(images, pixels), images, pixels, list(STD)
        ),
    }
    found = statistics_of(sums_of(output, views))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("head_norm", ["none", "batch"])
@pytest.mark.parametrize("local_crops", [0, 1, 3])
def test_strategy_none_without_restoration_is_dino(local_crops: int, head_norm: str) -> None:
    views, center = some_views(local_crops=local_crops), some_center()
    pair = tiny_pair(restoration=False, head_norm=head_norm)
    output = losses_of(pair, views, center, DINO)
    output.losses.total.backward()

    # DINO as in algorithm 1 of its paper: one view after the other, no tokens, no masks.
    plain = tiny_pair(restoration=False, head_norm=head_norm)
    crops = list(views.global_crops)
    with torch.no_grad():
        teacher_out = plain.teacher.head(plain.teacher.backbone(torch.cat(crops))).logits().chunk(2)
    features = [plain.student.backbone(crop) for crop in (*crops, *views.local_crops)]
    student_out = plain.student.head(torch.cat(features)).logits().chunk(len(features))
    terms = [
        -(F.softmax((t - center) / 0.04, dim=-1) * F.log_softmax(s / 0.1, dim=-1)).sum(dim=-1).mean()
        for i, t in enumerate(teacher_out)
        for j, s in enumerate(student_out)
        if i != j
    ]
    loss = sum(terms) / len(terms)
    loss.backward()

    torch.testing.assert_close(output.losses.total, loss, rtol=1e-6, atol=1e-6)
    assert output.losses.restoration.item() == 0.0
    assert output.mask is None
    assert output.reconstruction is None
    expected = gradients(plain.student)
    found = gradients(pair.student)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        rounding = 2e-5 * max(1.0, float(gradient.abs().max()))  # of sums whose parts are as large as that
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=rounding, msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_network_is_given_what_it_may_see(strategy: str) -> None:
    pair, student, teacher = spied(tiny_pair())
    output = losses_of(pair, some_views(), some_center(), replace(VALUES, strategy=strategy))
    assert teacher.calls == [((6, 3, 32, 32), None, strategy in ATTENTION_STRATEGIES)]
    local_call, *global_calls = student.calls
    assert [(shape, asked) for shape, _, asked in global_calls] == [((3, 3, 32, 32), False)] * 2
    masks = [mask for _, mask, _ in global_calls]
    assert masks == [None, None] if strategy == "none" else torch.equal(torch.cat(masks), output.mask)
    assert local_call == ((6, 3, 16, 16), None, False)
    assert (output.teacher.importance is not None) == (strategy in ATTENTION_STRATEGIES)


@pytest.mark.parametrize(("head_norm", "calls"), [("none", 2), ("batch", 1)])
def test_no_local_crops_is_no_pass_for_them(head_norm: str, calls: int) -> None:
    pair, student, _ = spied(tiny_pair(head_norm=head_norm))
    losses_of(pair, some_views(local_crops=0), some_center(), VALUES)
    assert len(student.calls) == calls


@pytest.mark.parametrize("head_norm", ["none", "batch"])
@pytest.mark.parametrize("strategy", ["none", "attention_low"])
def test_a_backward_pass_per_part_gives_the_same_gradients(strategy: str, head_norm: str) -> None:
    values, views, center = replace(VALUES, strategy=strategy), double_views(), some_center().double()
    whole, parts = (tiny_pair(head_norm=head_norm).double() for _ in range(2))
    losses_of(whole, views, center, values).losses.total.backward()
    sizes = []

    def backward(loss: Tensor) -> None:
        sizes.append(loss.item())
        loss.backward()

    losses = losses_of(parts, views, center, values, backward=backward).losses
    assert len(sizes) == (1 if head_norm == "batch" else 3)
    assert sum(sizes) == pytest.approx(losses.total.item())
    assert not losses.total.requires_grad
    for module, other in ((whole.student, parts.student), (whole.decoder, parts.decoder)):
        torch.testing.assert_close(gradients(module), gradients(other), rtol=1e-9, atol=1e-12)


def test_decoder_is_not_run_without_restoration() -> None:
    pair = tiny_pair()
    assert pair.decoder is not None
    pair.decoder.register_forward_pre_hook(lambda *_: pytest.fail("the decoder ran"))
    output = losses_of(pair, some_views(), some_center(), replace(VALUES, restoration_weight=0.0))
    assert output.mask is not None
    assert output.losses.restoration.item() == 0.0


def test_masks_hide_the_least_attended_tokens() -> None:
    values = replace(VALUES, mask_probability=1.0)
    output = losses_of(tiny_pair(), some_views(), some_center(), values)
    importance = output.teacher.importance
    assert importance is not None
    assert output.mask is not None
    for attention, hidden in zip(importance, output.mask, strict=True):
        assert hidden.sum() == 8
        assert attention[hidden].max() <= attention[~hidden].min()


def test_gradients_reach_the_student_and_the_decoder_only() -> None:
    pair = tiny_pair()
    values = replace(VALUES, mask_probability=1.0)
    views = some_views()
    output = losses_of(pair, views, some_center(), values, keep=True)
    output.losses.total.backward()
    assert gradients(pair.teacher) == {}
    assert not output.teacher_logits.requires_grad
    assert all(not value.requires_grad for value in sums_of(output, views).values())
    student = gradients(pair.student)
    missing = {n for n, p in pair.student.named_parameters() if p.requires_grad and n not in student}
    assert missing == set()
    assert pair.student.backbone.mask_token.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in pair.decoder.parameters())


def test_weights_scale_the_terms() -> None:
    pair, views, center = tiny_pair(), some_views(), some_center()
    values = replace(VALUES, distillation_weight=0.5, restoration_weight=2.0)
    losses = losses_of(pair, views, center, values).losses
    torch.testing.assert_close(losses.total, 0.5 * losses.self_distillation + 2.0 * losses.restoration)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_everything_masked(probability: float) -> None:
    values = replace(VALUES, eligible_fraction=1.0, mask_probability=probability)
    pair, views = tiny_pair(), some_views()
    output = losses_of(pair, views, some_center(), values, keep=True)
    found = statistics_of(sums_of(output, views))
    assert found["masked_share"] == probability
    assert math.isnan(found["psnr_visible" if probability else "psnr_masked"])
    assert output.losses.total.isfinite()
    if probability == 0.0:
        whole = losses_of(pair, views, some_center(), replace(values, strategy="none"))
        torch.testing.assert_close(whole.losses.total, output.losses.total)


def test_the_step_is_a_function_of_its_arguments() -> None:
    pair, views, center = tiny_pair(), some_views(), some_center()
    before = center.clone()
    first = losses_of(pair, views, center, VALUES)
    again = losses_of(pair, views, center, VALUES, keep=True)
    other = losses_of(pair, views, center, VALUES, step=2)
    assert torch.equal(first.losses.total, again.losses.total)
    assert torch.equal(first.mask, again.mask)
    assert not torch.equal(first.mask, other.mask)
    assert torch.equal(center, before)
    assert first.reconstruction is None
    assert again.reconstruction is not None


def test_psnr_is_left_out_without_the_normalisation() -> None:
    views = some_views()
    output = losses_of(tiny_pair(), views, some_center(), VALUES, keep=True)
    found = statistics_of(statistic_sums(output, views.global_crops.flatten(0, 1), None))
    assert found.keys() == {"teacher_entropy", "marginal_entropy", "masked_share"}


def test_losses_are_float32_under_autocast() -> None:
    pair, views, center = tiny_pair(), some_views(), some_center()
    values = replace(VALUES, strategy="random")  # a mask that does not depend on rounding
    exact = losses_of(pair, views, center, values)
    with torch.autocast("cpu", torch.bfloat16):
        output = losses_of(pair, views, center, values, keep=True)
    losses = output.losses
    assert {losses.total.dtype, losses.self_distillation.dtype, losses.restoration.dtype} == {torch.float32}
    assert {value.dtype for value in sums_of(output, views).values()} == {torch.float32}
    assert output.teacher_logits.dtype == torch.float32
    torch.testing.assert_close(losses.total, exact.losses.total, rtol=0.05, atol=0.05)
    losses.total.backward()


def test_restoration_needs_a_decoder() -> None:
    with pytest.raises(UsageError, match="but no image decoder"):
        losses_of(tiny_pair(restoration=False), some_views(), some_center(), VALUES)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("head_norm", ["none", "batch"])
def test_no_forward_is_bypassed(name: str, head_norm: str) -> None:
    """Wrappers such as DDP and FSDP act on calls of modules: each block, head and decoder must be called."""
    swin = name.startswith("swin")
    model = ModelConfig(
        backbone=name,
        patch_size=32 if swin else 8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        head_hidden=16,
        head_bottleneck=8,
        head_norm=head_norm,
    )
    size = (64, 64) if swin else (32, 32)
    plan = RunPlan.model_construct(prototypes=PROTOTYPES, global_size=size)
    pair = build_pair(model, plan, channels=3, restoration=True, seed=0)
    views = some_views(2, 2, 2, size)
    if swin:
        views = Views(views.global_crops, torch.randn(2, 2, 3, 32, 32), views.indices)
    calls: dict[str, int] = {}
    watched = [("pair", pair), ("student.head", pair.student.head), ("decoder", pair.decoder)]
    for branch in ("student", "teacher"):
        backbone = getattr(pair, branch).backbone
        blocks = [block for stage in backbone.model.layers for block in stage.blocks] if swin else backbone.model.blocks
        watched += [(f"{branch} block {index}", block) for index, block in enumerate(blocks)]
        watched += [(f"{branch}.backbone", backbone), (f"{branch} norm", backbone.model.norm)]
        watched += [(f"{branch} stem", backbone.model.patch_embed)]
    watched += [("teacher.head", pair.teacher.head)]
    for label, module in watched:
        calls[label] = 0

        def count(*_: object, label: str = label) -> None:
            calls[label] += 1

        module.register_forward_pre_hook(count)
    losses_of(pair, views, some_center(), VALUES, backward=lambda loss: loss.backward())
    student_passes = 3 if head_norm == "none" else 1  # two global crops and the local ones, or all together
    student_images = 3 if head_norm == "none" else 2  # calls of the network: one for each size of crop in a pass
    for label, found in calls.items():
        expected = 1 if label.startswith("teacher") else student_images
        if label in {"pair", "student.head"}:
            expected = student_passes
        if label == "decoder":
            expected = 2 if head_norm == "none" else 1
        assert found == expected, (label, calls)
