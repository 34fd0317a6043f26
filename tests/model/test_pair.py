from __future__ import annotations

import pytest
import torch

from mst.config.schema import ModelConfig, RunPlan
from mst.model.pair import TeacherStudent, build_pair, ema_update
from reference.model_reference import ema

MODEL = ModelConfig(
    backbone="deit_tiny_patch16_224",
    patch_size=8,
    embed_dim=32,
    depth=2,
    num_heads=2,
    head_hidden=24,
    head_bottleneck=8,
)
PLAN = RunPlan.model_construct(prototypes=20, global_size=(24, 32))  # what build_pair reads of it


def build(seed: int = 0, *, restoration: bool = True, **settings: object) -> TeacherStudent:
    model = MODEL.model_copy(update=settings)
    return build_pair(model, PLAN, channels=3, restoration=restoration, seed=seed)


def test_teacher_starts_as_a_frozen_copy() -> None:
    pair = build()
    assert not any(p.requires_grad for p in pair.teacher.parameters())
    for mine, other in zip(pair.teacher.parameters(), pair.student.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.data_ptr() != other.data_ptr()
    images = torch.randn(2, 3, 24, 32)
    pair.student.eval()
    torch.testing.assert_close(pair.teacher(images)[1], pair.student(images)[1])


def test_branch_gives_tokens_logits_and_reconstruction() -> None:
    pair = build()
    images = torch.randn(2, 3, 24, 32)
    tokens, logits = pair.teacher(images, importance=True)
    assert logits.shape == (2, 20)
    assert logits.dtype == torch.float32
    assert tokens.importance.shape == (2, 12)
    tokens, logits = pair.student(images, tokens.importance < tokens.importance.median())
    assert tokens.importance is None
    assert pair.decoder(tokens.patches, tokens.grid).shape == images.shape


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vit_small_patch16_dinov3"]
)
def test_other_families_restore_images_of_their_own_size(name: str) -> None:
    plan = RunPlan.model_construct(prototypes=20, global_size=(32, 64))
    patch_size = 16 if name.startswith("vit") else 32
    settings = {"backbone": name, "patch_size": patch_size, "embed_dim": 16, "num_heads": 1, "norm_last_layer": False}
    pair = build_pair(MODEL.model_copy(update=settings), plan, channels=1, restoration=True, seed=0)
    images = torch.randn(2, 1, 32, 64)
    tokens, _ = pair.teacher(images, importance=True)
    tokens, logits = pair.student(images, tokens.importance <= tokens.importance.median())
    reconstruction = pair.decoder(tokens.patches, tokens.grid)
    assert reconstruction.shape == images.shape
    (reconstruction.square().mean() + logits.square().mean()).backward()
    assert all(p.grad is not None for p in [*pair.student.parameters(), *pair.decoder.parameters()])
    assert all(p.grad is None for p in pair.teacher.parameters())


def test_stochastic_depth_is_the_students() -> None:
    pair = build(drop_path=0.5).train()
    images = torch.randn(8, 3, 24, 32)
    assert torch.equal(pair.teacher(images)[1], pair.teacher(images)[1])
    assert not torch.equal(pair.student(images)[1], pair.student(images)[1])


@pytest.mark.parametrize("mode", [True, False])
def test_the_teacher_keeps_its_modes(mode: bool) -> None:
    pair = build(head_norm="batch").train(mode)
    assert not pair.teacher.backbone.training
    assert pair.teacher.head.training
    assert pair.student.training == mode


def test_weights_are_a_function_of_the_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = build(1).state_dict(), build(1).state_dict(), build(2).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["student.head.prototypes"], other["student.head.prototypes"])
    without = build(1, restoration=False)
    assert without.decoder is None
    assert all(torch.equal(tensor, one[name]) for name, tensor in without.state_dict().items())


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_ema_equals_the_slow_definition(momentum: float) -> None:
    pair = build(head_norm="batch")
    for parameter in pair.student.parameters():
        torch.nn.init.normal_(parameter)
    pair.student(torch.randn(4, 3, 24, 32))  # moves the running statistics
    expected = ema(pair.teacher, pair.student, momentum).state_dict()
    before = [p.data_ptr() for p in pair.teacher.parameters()]
    ema_update(pair.teacher, pair.student, momentum)
    assert before == [p.data_ptr() for p in pair.teacher.parameters()]
    for name, tensor in pair.teacher.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6, msg=name)


def test_momentum_one_changes_nothing() -> None:
    pair = build()
    torch.nn.init.normal_(pair.student.head.prototypes)
    before = pair.teacher.head.prototypes.clone()
    ema_update(pair.teacher, pair.student, 1.0)
    assert torch.equal(before, pair.teacher.head.prototypes)
