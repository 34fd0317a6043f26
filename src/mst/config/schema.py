"""Every setting of a run, frozen, typed, with its range and its reason.

`None` means "derived from the data set and the batch" (`mst.config.derive` says how and why). Defaults are DINO's
ViT-S/16 recipe (Caron et al. 2021) with MST's masking and restoration; docs/deviations.md lists what the paper
leaves open.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST = 10**9
"""Largest whole number of a setting that has no limit of its own: beyond every use, within every integer type."""
LARGEST = 1e30
"""The same for numbers; float32 holds it."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0.0, le=LARGEST)]
Sigma = Annotated[float, Field(gt=0.0, le=100.0)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Epochs = Annotated[float, Field(ge=0.0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
Side = Annotated[int, Field(ge=1, le=4096)]
Size = Side | tuple[Side, Side]

Strategy = Literal["none", "attention_low", "random", "block", "attention_high", "attention_hint"]

SIZE = r"^\d+(\.\d+)?\s?([kKMGT]B)$"
"""A number of bytes, as people write it."""


def bytes_of(size: str) -> int:
    """Return the bytes that a text like 50GB means; units are powers of 1000."""
    unit = "KMGT".index(size[-2].upper()) + 1
    return int(float(size[:-2]) * 1000.0**unit)


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, no silent type changes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Section):
    """Where the images are."""

    train: tuple[str, ...] = ()
    """Folders (searched at any depth), lists of paths, arrays, shards, hf:NAME, addresses; SOURCE@2 counts twice."""
    channels: Annotated[int, Field(ge=1, le=64)] = 3
    """Channels of an image: 3 for RGB, 1 for grey."""
    value_range: Literal["auto"] | tuple[Number, Number] = "auto"
    """Black and white among values that are not stored in 8 bits, such as -1024 3071; auto = measured on a sample."""
    limit: Count | None = None
    """Use only this many images, drawn evenly from the sorted list; None = all."""
    held_out: Natural = 0
    """Keep so many images out of training, drawn evenly, at most a tenth of all: scores without labels are measured on
    them. 0 = none (with --monitor.knn-data its validation images are used)."""
    max_unreadable_share: Fraction = 0.05
    """Stop when more than this share of the files read so far could not be decoded."""
    cache: bool = True
    """Keep decoded images in memory where they fit in a quarter of it (small images only)."""
    reduced_decode: bool = True
    """Decode large JPEGs at 1/4 or 1/8 of their size, as far as no crop is enlarged by it."""
    order: Literal["global", "shards"] = "global"
    """Shuffle all images, or shards and windows of them, which remote and spinning media read quicker."""
    shard_cache: str | None = None
    """Folder of fetched shards, shared by the processes of a host; None = mst/shards in the user's cache."""
    shard_cache_size: Annotated[str, Field(pattern=SIZE)] = "50GB"
    """Room for fetched shards, such as 500MB or 2TB; the ones used longest ago go first."""
    download: bool = False
    """Fetch Hugging Face data sets that are not in the cache over the network."""
    index_cache: bool = True
    """Remember which images large folders hold; a folder that changed since is searched again."""
    by_content: bool = False
    """Open files with other extensions than images have, or none, and take those that begin as an image does."""
    strict: bool = False
    """Refuse what cannot be used below the sources (folders without permission, dead links, pipes), not just say so."""


class ViewsConfig(Section):
    """Multi-crop augmentation (DINO's recipe)."""

    global_crops: Annotated[int, Field(ge=2, le=8)] = 2
    """Large crops per image, seen by teacher and student."""
    local_crops: Annotated[int, Field(ge=0, le=32)] = 6
    """Small crops per image, seen by the student only."""
    global_size: Size = 224
    """Pixels of a global crop: one number or (height, width); a multiple of the patch size."""
    local_size: Size = 96
    """Pixels of a local crop: one number or (height, width); a multiple of the patch size."""
    global_scale: tuple[Fraction, Fraction] = (0.4, 1.0)
    """Share of the image's area that a global crop covers."""
    local_scale: tuple[Fraction, Fraction] = (0.05, 0.4)
    """Share of the image's area that a local crop covers."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    jitter: Fraction = 0.8
    """Probability of colour jitter."""
    brightness: NonNegative = 0.4
    """Brightness factor is drawn from 1 +- this."""
    contrast: NonNegative = 0.4
    """Contrast factor is drawn from 1 +- this."""
    saturation: NonNegative = 0.2
    """Saturation factor is drawn from 1 +- this."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Hue shift in turns is drawn from +- this."""
    grey: Fraction = 0.2
    """Probability of turning a crop grey."""
    blur: tuple[Fraction, Fraction, Fraction] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur: first global crop, other global crops, local crops."""
    blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels at global crops of 224 px, scaled with their size."""
    local_blur_sigma: tuple[Sigma, Sigma] | None = None
    """The same of local crops, scaled with the size of the global ones as well; None = that of the global crops."""
    solarize: Fraction = 0.2
    """Probability of solarizing, all global crops but the first."""
    mean: tuple[Fraction, ...] | Literal["auto"] = (0.485, 0.456, 0.406)
    """Per-channel mean in [0, 1] (ImageNet's); auto = measured. Unless set, other images than RGB are measured."""
    std: tuple[Annotated[float, Field(gt=0.0, le=10.0)], ...] | Literal["auto"] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation in [0, 1] (ImageNet's); auto = measured."""


class ModelConfig(Section):
    """Backbone, projection head and image decoder."""

    backbone: str = "deit_small_patch16_224"
    """A timm model name of the ViT family."""
    patch_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Another patch size than the name's; None = the name's."""
    embed_dim: Annotated[int, Field(ge=1, le=2**14)] | None = None
    """Another embedding size than the name's; None = the name's."""
    depth: Annotated[int, Field(ge=1, le=512)] | None = None
    """Another number of blocks than the name's; None = the name's."""
    num_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Another number of attention heads than the name's; None = the name's."""
    drop_path: Annotated[float, Field(ge=0.0, le=0.9)] = 0.1
    """Stochastic depth rate of the last block (linear from 0 at the first), student only."""
    init: Literal["trunc_normal", "xavier_uniform"] = "trunc_normal"
    """Start of the backbone's linear layers: deviation 0.02 (DINO), or by fan (narrow networks learn sooner)."""
    positions: Literal["learned", "fixed"] = "learned"
    """Position embeddings: learned, or fixed sines and cosines as in MAE (with init_from: the start's, not trained)."""
    init_from: str | None = None
    """Start from trained weights (also --init): a run folder, a file of weights under timm's names, or timm:NAME."""
    prototypes: Annotated[int, Field(ge=2, le=2**22)] | None = None
    """Outputs K of the projection head; None = derived from the data set's size."""
    head_hidden: Annotated[int, Field(ge=1, le=2**16)] = 2048
    """Width of the head's hidden layers."""
    head_bottleneck: Annotated[int, Field(ge=1, le=2**16)] = 256
    """Width of the head's normalised output, before the prototypes."""
    head_norm: Literal["none", "batch"] = "none"
    """BatchNorm in the head (synchronised across processes), or none."""
    norm_last_layer: bool = True
    """Freeze the gain of the prototypes' weight normalisation at one."""
    decoder: Literal["cnn", "linear"] = "cnn"
    """The image decoder: convolutions and pixel shuffles, or one 1x1 convolution and a pixel shuffle."""


class ObjectiveConfig(Section):
    """Masking, self-distillation and restoration."""

    strategy: Strategy = "attention_low"
    """Which patch tokens may be hidden from the student."""
    eligible_fraction: Fraction = 0.5
    """Share of the tokens that may be masked (the paper's 1/num)."""
    mask_probability: Fraction = 0.3
    """Probability that an eligible token is masked."""
    masked_sample_share: Fraction = 1.0
    """Share of the images that get a mask at all."""
    student_temp: Positive = 0.1
    """Temperature of the student's softmax."""
    teacher_temp: Positive | None = None
    """Temperature of the teacher's softmax after its warm-up; None = derived."""
    teacher_temp_start: Positive | None = None
    """Temperature at step 0; None = derived (0.04, or teacher_temp if that is lower)."""
    teacher_temp_warmup_epochs: Epochs | None = None
    """Epochs of linear warm-up of the teacher's temperature; None = derived."""
    teacher_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """EMA momentum of the teacher at step 0, cosine to teacher_momentum_end; None = derived from batch and steps."""
    teacher_momentum_end: Fraction = 1.0
    """EMA momentum of the teacher at the last step."""
    center_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """EMA momentum of the center; 0 = the mean logits of the last step alone."""
    distillation_weight: NonNegative = 1.0
    """Weight of the self-distillation loss."""
    restoration_weight: NonNegative = 0.6
    """Weight of the restoration loss; 0 leaves the decoder out."""


class OptimizerConfig(Section):
    """AdamW."""

    base_lr: Positive = 5e-4
    """Learning rate per 256 images of global batch."""
    lr: Positive | None = None
    """Peak learning rate; None = base_lr * batch_size / 256."""
    min_lr: NonNegative = 1e-6
    """Learning rate at the last step."""
    weight_decay: NonNegative = 0.04
    """Weight decay at step 0; biases and 1-D tensors have none."""
    weight_decay_end: NonNegative = 0.4
    """Weight decay at the last step (cosine)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's momentum terms."""
    clip: Positive | None = 3.0
    """Largest gradient norm of one parameter tensor; None = no clipping."""


class ScheduleConfig(Section):
    """Lengths of the warm-ups."""

    warmup_epochs: Epochs | None = None
    """Epochs of linear learning-rate warm-up from 0; None = derived."""
    freeze_last_layer_epochs: Epochs | None = None
    """Epochs in which the prototypes are not updated; None = derived."""
    freeze_backbone_epochs: Epochs | None = None
    """Epochs in which only head, decoder and mask token learn; None = derived: 0 unless model.init_from is set."""


class TrainConfig(Section):
    """Batch and length."""

    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 1024
    """Global batch: images per optimizer step, over all processes and microbatches."""
    epochs: Annotated[float, Field(gt=0.0, le=1e6)] = 100.0
    """Passes over the data; a fraction is allowed."""
    accumulate: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Microbatches per optimizer step: forward and backward passes that add up their gradients."""
    max_bad_steps: Natural = 10
    """Consecutive steps with a non-finite loss or gradient that are skipped before the run stops."""


class CheckpointConfig(Section):
    """Saving."""

    every_steps: Count = 1000
    """Steps between checkpoints (one is always written at the end and on a signal)."""
    keep: Count = 2
    """Newest checkpoints to keep."""


class MonitorConfig(Section):
    """What is watched while training."""

    every_steps: Count = 50
    """Steps between rows of statistics in metrics.jsonl."""
    knn_data: str | None = None
    """A labelled folder (train/<class>/ and val/<class>/, or <class>/ alone) or a table (.csv, .tsv) for k-NN while
    training."""
    knn_labels: str | None = None
    """A table (.csv, .tsv) of paths and labels, where monitor.knn_data is the folder that its paths are relative to."""
    knn_label_column: str | None = None
    """Name or number of the table's column of labels; none = found if it has a usual name."""
    knn_val_share: Annotated[float, Field(ge=0.01, le=0.99)] = 0.2
    """Share of each class that k-NN scores, where the labelled images have no validation part."""
    knn_split_seed: Natural = 0
    """Of that split: the same images and the same seed give the same split on every machine."""
    knn_exclude: bool = False
    """Leave the images that k-NN could score out of --data.train, found by path and by content."""
    knn_every_steps: Count = 1000
    """Steps between k-NN evaluations."""
    knn_train_limit: Count = 10_000
    """Most training images k-NN compares with, drawn evenly from the sorted list."""
    knn_val_limit: Count = 2_000
    """Most validation images k-NN classifies."""
    guard: Literal["warn", "stop", "off"] = "warn"
    """What to do when the k-NN accuracy of a run from trained weights (model.init_from) falls below its start's."""
    guard_drop: NonNegative = 5.0
    """Points of k-NN accuracy below the start from which the guard speaks."""
    collapse: Literal["warn", "stop", "off"] = "warn"
    """What to do when the teacher's output collapses."""
    dynamics: Literal["warn", "repair", "off"] = "warn"
    """What to do when a run goes wrong in another way (docs/dynamics.md): warn, or go back and on with a knob moved, at
    most twice. Repair keeps a few more checkpoints."""
    tensorboard: bool = True
    """Write TensorBoard event files."""


class RuntimeConfig(Section):
    """Machine and reproducibility."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw derives from (seed, epoch, sample position)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute type of the networks; auto = bfloat16 where the device is good at it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Annotated[int, Field(ge=-1, le=256)] = -1
    """Processes that decode and augment; 0 = in a background thread of this process; -1 = derived from the cores."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Compute threads; 0 = torch's choice, or one with lanes."""
    replicas: Annotated[int, Field(ge=0, le=64)] = 0
    """Parts of a batch that a CPU works on at the same time, each with its share of the threads; 0 = one per thread, up
    to four. A head with BatchNorm has one."""
    activation_checkpointing: bool = False
    """Compute each block of the student again in the backward pass: far less memory, about a quarter more work."""
    processes: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes on this machine that share each batch; auto = one for each GPU. torchrun and srun start their own."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """What several processes hold: each all of the networks, or (for networks too large for a GPU) each a part."""
    lanes: Annotated[int, Field(ge=0, le=1024)] = 0
    """Parts of a batch, a power of two, whose gradients are added as a binary tree: weights are then bit-equal for 1,
    2, 4, ... processes of as many threads, up to as many as lanes, on machines of one kind. 0 = none, which is
    faster."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Let torch.compile merge the operations of each block, which takes minutes at the start; auto = on CUDA, where a
    run has 1,000 steps or more."""
    decode: Literal["cpu", "device"] = "cpu"
    """Who decodes plain JPEGs: the CPU, or a CUDA device, which then also cuts the crops; other files are the CPU's.
    For machines with few cores beside a GPU; pixels differ by a few grey levels."""
    colour: Literal["auto", "loader", "device"] = "auto"
    """Who jitters, blurs and solarizes the crops: the loader, or the networks' device; auto = the device if a GPU."""


class Settings(Section):
    """Everything that can be set on the command line as --section.key."""

    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    runtime: RuntimeConfig = RuntimeConfig()


class Choice(Section):
    """What this program chose for the images, the device and the time (`mst.config.choosing`), and what it may choose.

    It is asked for by a recipe or by --minutes and made once, at the start of a run; config.json keeps it.
    """

    minutes: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """How long the run may take; None = a usual length for the device."""
    given: tuple[str, ...] = ()
    """Dotted keys that the user, or a recipe with values of its own, set: they stay as they are."""
    reasons: dict[str, str] = {}
    """For each setting that was chosen, by dotted key, why."""
    facts: dict[str, dict[str, Any]] = {}
    """What was known of `images`, `device` and `speed`, as measured; empty = nothing was chosen yet."""


class RunConfig(Settings):
    """One complete run."""

    recipe: str = "custom"
    """Name of the recipe this configuration started from."""
    given: tuple[str, ...] = ()
    """Dotted keys that the user set, on the command line, from Python or in a file: all else is the recipe's."""
    choice: Choice | None = None
    """What was, or is to be, chosen for the images, the device and the time; None = nothing."""


class RunPlan(Section):
    """Everything derived from a `RunConfig` and the number of images (plan.json). Steps are optimizer steps."""

    dataset_size: int
    steps_per_epoch: int
    total_steps: int
    batch_size: int
    batch_size_per_pass: int
    lr: float
    warmup_steps: int
    prototypes: int
    teacher_temp: float
    teacher_temp_start: float
    teacher_temp_warmup_steps: int
    teacher_momentum: float
    freeze_last_layer_steps: int
    freeze_backbone_steps: int = 0
    global_size: tuple[int, int]
    local_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_ranges: dict[str, tuple[float, float]] | None = None
    """Black and white by how values are stored, where not in 8 bits (`mst.data.value_range`); None in runs of older
    versions, which decided for each image."""
    reasons: dict[str, str]
    """For each derived value, one line that says where it comes from."""
    order: str | None = None
    """What decides which image comes when (`mst.planning.images.order_name`); None in runs of older versions."""
    data_identity: dict[str, Any] = {}
    """What the images are, `mst.runtime.identity.DataIdentity.row()`; empty in runs of older versions."""
    accepted_data: tuple[dict[str, Any], ...] = ()
    """Images that the run learned from before they changed: `identity`, and the `until_step` they were used."""
    opened: tuple[int, int] | None = None
    """Different images among those that were opened before the run, and how many these were."""
    interventions: tuple[dict[str, Any], ...] = ()
    """Settings that were changed in the middle of the run: from `step` on, `changed`: key -> (before, from then on)."""
