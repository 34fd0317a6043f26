"""What every backbone is: a timm network held unchanged, read as tokens, with one mask token beside it.

Letters (docs/algorithm.md): B images, C channels, H W pixels, N = h*w patch tokens, D embedding size. The network is
held, not copied or subclassed, so its weights load into `timm.create_model` as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from mst.errors import UsageError
from mst.model.tokens import Summary, Tokens
from mst.weights.description import BadDescription, whole, wholes, word
from mst.weights.tensors import strange_number, type_name

MOST_SIDE = 1 << 16
MOST_NEEDED = {"channels": 1024, "patch_size": 1024}
MOST = {"embed_dim": 1 << 14, "depth": 512, "num_heads": 1024}
"""Largest numbers of a description; far above every network there is."""
LinearInit = Literal["trunc_normal", "xavier_uniform"]
Positions = Literal["learned", "fixed"]
"""Whether a training changes the absolute position embeddings of a network."""


@dataclass(frozen=True)
class BackboneSpec:
    """All that is needed to rebuild a backbone; plain numbers, so it goes into JSON.

    Attributes:
        name: timm model name, without a pre-training tag.
        image_size: (H, W) the position embedding is made for; other sizes are resampled.
        channels: C.
        patch_size: pixels per token side (32 for Swin).
        embed_dim: width, or None for the name's own. Swin: width of the first stage.
        depth: blocks, or None for the name's own. Swin: blocks of the third stage.
        num_heads: attention heads, or None for the name's own. Swin: heads of the first stage.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    patch_size: int
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BackboneSpec:
        """Rebuild the record.

        Raises:
            BadDescription: a key is missing or unknown, or a value is not of its kind and size.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(map(str, values.keys() - known))
        if unknown:
            raise BadDescription(f"not a backbone description: {unknown[0]} is unknown")
        try:
            height, width = wholes(values, "image_size", count=2, most=MOST_SIDE)
            own = {key: whole(values, key, most=most) for key, most in MOST.items() if values.get(key) is not None}
            needed = {key: whole(values, key, most=most) for key, most in MOST_NEEDED.items()}
            return cls(name=word(values, "name"), image_size=(height, width), **needed, **own)
        except BadDescription as error:
            raise BadDescription(f"not a backbone description: {error}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, leave the process's random state as it was. Works on the CPU's generator only."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class ImageInput(Protocol):
    """Makes a backbone's input of one image, see `mst.workflows.image_input`."""

    def __call__(self, image: Any, *, value_range: tuple[float, float] | None = None) -> Tensor:
        """Return an image (a path, an image of Pillow, an array) as float32 [C, H, W], as the backbone takes it."""

    def explain(self, image: Any, *, value_range: tuple[float, float] | None = None) -> str:
        """Return in words what the call does with this image."""


class _UnknownInput:
    """In place of a transform: nothing is known of the images of a backbone that was built anew."""

    def __call__(self, image: Any, *, value_range: tuple[float, float] | None = None) -> Tensor:
        raise UsageError("this backbone does not say what its images are: load one by mst.load_backbone(RUN or FILE)")

    def explain(self, image: Any, *, value_range: tuple[float, float] | None = None) -> str:
        return "this backbone does not say what its images are: load one by mst.load_backbone(RUN or FILE)"


Want = Literal["features", "summary", "tokens", "intermediate", "stages"]
"""What a pass of a backbone returns."""


class Backbone(nn.Module, ABC):
    """A timm network as a source of `Tokens`.

    Attributes:
        spec: rebuilds it.
        model: the timm network.
        embed_dim: D.
        patch_size: pixels per token side.
        mask_token: replaces the patch embedding of hidden tokens; trained in the student only, not exported.
        metadata: what the file it was loaded from says (mean, std, ...); empty when it was built anew.
        transform: makes its input of a path, an image of Pillow or an array, if it was loaded by `mst.load_backbone`.
    """

    ANY_SIZE: ClassVar[dict[str, Any]] = {"dynamic_img_size": True}
    """What makes timm's constructor accept other image sizes later; changes no weight."""
    SAME_AT_ANY_SIZE: ClassVar[bool] = True
    """Whether timm's own network then gives the same features at other sizes."""

    model: Any
    metadata: dict[str, Any]

    def __init__(self, spec: BackboneSpec, model: nn.Module, *, embed_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.model = model
        self.embed_dim = embed_dim
        self.patch_size = spec.patch_size
        self.mask_token = nn.Parameter(torch.zeros(mask_dim))
        self.metadata = {}
        self.transform: ImageInput = _UnknownInput()

    @classmethod
    def timm_arguments(cls, spec: BackboneSpec) -> dict[str, Any]:
        """Return the keyword arguments with which `timm.create_model(spec.name, ...)` makes the same network.

        Raises:
            UsageError: this family cannot be built so.
        """
        chosen = {
            "patch_size": spec.patch_size,
            "embed_dim": spec.embed_dim,
            "depth": spec.depth,
            "num_heads": spec.num_heads,
        }
        return {**cls.common_arguments(spec), **{key: value for key, value in chosen.items() if value is not None}}

    @staticmethod
    def common_arguments(spec: BackboneSpec) -> dict[str, Any]:
        """Return the arguments that all families share; there is no classifier."""
        return {"img_size": spec.image_size, "in_chans": spec.channels, "num_classes": 0}

    @property
    @abstractmethod
    def blocks(self) -> list[Any]:
        """All transformer blocks, in the order of a pass."""

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        want: Want = "features",
        importance: bool = False,
        layers: int = 1,
    ) -> Any:
        """Return the global features [B, D] of normalised images [B, C, H, W]: what timm's pooling gives.

        With another `want`, what the method of that name returns: all of them come through here, so that whatever
        wraps or watches modules sees every pass.

        Raises:
            UsageError: no such images; for features in evaluation mode also such with NaN or infinity. Training waits
                for no device: the loss tells.
        """
        match want:
            case "tokens":
                return self._tokens(images, mask, importance)
            case "intermediate":
                return self._intermediate(images, layers)
            case "stages":
                return self._stages(images)
            case "features" if not (self.training or torch.compiler.is_compiling()):
                check_finite(images)
        summary = self._summary(images, mask, importance)
        return summary if want == "summary" else summary.cls

    def tokens(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Tokens:
        """Return the tokens of normalised images.

        Args:
            images: [B, C, H, W], sides multiples of the patch size.
            mask: [B, N] bool, True = hidden: the mask token takes the place of the patch embedding, before the
                position embedding. None = nothing hidden.
            importance: also return the attention each patch token receives (detached, float32).

        Raises:
            UsageError: images of another number of channels or of a size that is no multiple of the patch.
        """
        found: Tokens = self(images, mask, want="tokens", importance=importance)
        return found

    def summary(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Summary:
        """Return what `tokens` returns but the patch tokens; a family may save the work that only they need."""
        found: Summary = self(images, mask, want="summary", importance=importance)
        return found

    def intermediate(self, images: Tensor, layers: int) -> list[Tokens]:
        """Return the tokens after each of the last `layers` blocks, through the final norm, shallow first."""
        found: list[Tokens] = self(images, want="intermediate", layers=layers)
        return found

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the map after each stage [B, D', h', w'], fine first.

        Raises:
            UsageError: the network has no stages (it is no Swin).
        """
        found: list[Tensor] = self(images, want="stages")
        return found

    @abstractmethod
    def _tokens(self, images: Tensor, mask: Tensor | None, importance: bool) -> Tokens: ...

    def _summary(self, images: Tensor, mask: Tensor | None, importance: bool) -> Summary:
        tokens = self._tokens(images, mask, importance)
        return Summary(tokens.cls, tokens.grid, tokens.importance)

    @abstractmethod
    def _intermediate(self, images: Tensor, layers: int) -> list[Tokens]: ...

    def _stages(self, images: Tensor) -> list[Tensor]:
        raise UsageError(f"{self.spec.name} has no stages: use a Swin")

    def init_weights(
        self, seed: int = 0, linear: LinearInit = "trunc_normal", positions: Positions = "learned"
    ) -> None:
        """Write every parameter and buffer: timm's initialisation, mask token normal with deviation 0.02.

        timm gives linear layers a deviation of 0.02, chosen for widths from 384 on. `xavier_uniform` scales it with
        the layer instead (as the first ViT, Dosovitskiy et al. 2021): a narrow network then starts to learn sooner.
        With fixed `positions` (sines and cosines) all other weights are the same. The same seed gives the same
        weights; the process's random state is left alone. Call it on the CPU.

        Raises:
            UsageError: fixed positions, and the network has none, or no width for them.
        """
        with seeded(seed):
            self.model.init_weights()
            if linear == "xavier_uniform":
                for layer in self.model.modules():
                    if isinstance(layer, nn.Linear):
                        nn.init.xavier_uniform_(layer.weight)
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        if positions == "fixed":
            self._fix_positions()

    def _fix_positions(self) -> None:
        raise UsageError(
            f"--model.positions fixed: {self.spec.name} has no absolute position embeddings: leave the option out, or "
            "take a ViT that has them (for example deit_small_patch16_224)"
        )

    def timm_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under timm's names; they load strictly into `timm.create_model`."""
        weights: dict[str, Tensor] = self.model.state_dict()
        return weights

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return (h, w) of the tokens of images [B, C, H, W], after checking that they fit this backbone.

        Raises:
            UsageError: they do not; says what to give. Looks at no pixel.
        """
        check_images(images, self.mask_token)
        channels, height, width = images.shape[1:]
        if channels != self.spec.channels:
            last = " (channels come before height and width)" if images.shape[-1] == self.spec.channels else ""
            raise UsageError(
                f"images have {channels} channels, this backbone takes {self.spec.channels}{last}: "
                f"convert them, or train a backbone on such images (mst pretrain ... --data.channels {channels})"
            )
        check_image_size((height, width), self.patch_size)
        return height // self.patch_size, width // self.patch_size


def check_images(images: Tensor, weights: Tensor) -> None:
    """Refuse what is no batch of images [B, C, H, W] of the weights' type and on their device.

    Raises:
        UsageError: it is none; says what to give.
    """
    if not isinstance(images, Tensor):
        raise UsageError(f"images are {type(images).__name__}: give a tensor [B, C, H, W] of normalised images")
    if images.ndim != 4:
        hint = ": images.unsqueeze(0) makes a batch of one" if images.ndim == 3 else ""
        raise UsageError(f"images have shape {list(images.shape)}, needed is [B, C, H, W]{hint}")
    if images.shape[0] == 0:  # `len` would fix the batch of an export
        raise UsageError(f"images have shape {list(images.shape)}: give at least one image")
    if not images.is_floating_point():
        raise UsageError(
            f"images are of type {type_name(images.dtype)}: give floats, normalised with the backbone's mean and std "
            "(backbone.metadata)"
        )
    if images.device != weights.device:
        raise UsageError(f"images are on {images.device}, the backbone is on {weights.device}: move one of them")
    if images.dtype != weights.dtype and not torch.is_autocast_enabled(images.device.type):
        want = type_name(weights.dtype)
        raise UsageError(
            f"images are of type {type_name(images.dtype)}, the backbone of type {want}: convert one of them"
        )


def check_finite(images: Tensor) -> None:
    """Refuse images with NaN or infinity.

    Raises:
        UsageError: there are such; says which image.
    """
    if not isinstance(images, Tensor) or images.is_meta:  # `check_images` says the rest
        return
    if images.numel() and images.is_floating_point() and (found := strange_number(images)) is not None:
        sound = images.flatten(1).isfinite().all(dim=1).tolist() if images.ndim > 1 else []  # [B]
        which = f"image {sound.index(False)} of {len(images)}" if False in sound else "the batch"
        raise UsageError(f"{which} holds {found}: the features would be no numbers; leave it out or mend its pixels")


def check_image_size(size: tuple[int, int], patch_size: int, what: str = "image size") -> None:
    """Refuse a size (H, W) that patches do not tile.

    Raises:
        UsageError: with the nearest sizes that fit.
    """
    height, width = size
    if min(size) < patch_size:
        raise UsageError(
            f"{what} {height}x{width} is smaller than one {patch_size} px patch: use at least {patch_size}x{patch_size}"
        )
    if height % patch_size or width % patch_size:
        below, above = ("x".join(str(fit(side, patch_size)) for side in size) for fit in (_round_down, _round_up))
        raise UsageError(
            f"{what} {height}x{width} is not a multiple of the patch size {patch_size}: use {below} or {above}"
        )


def _round_down(side: int, step: int) -> int:
    return side // step * step


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step
