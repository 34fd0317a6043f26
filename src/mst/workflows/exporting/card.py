"""The model card of a folder for Hugging Face's hub."""

from __future__ import annotations

from typing import Any

from mst.export.native.names import Native
from mst.export.native.weights import architecture
from mst.report.page import card_text
from mst.runtime.storage.rundir import RunDir
from mst.workflows.subject import Subject

CARD = "README.md"
FEATURES, CLASSES = "image-feature-extraction", "image-classification"
"""Names of pipelines of transformers."""
LOAD = (
    "from transformers import AutoImageProcessor, AutoModel\n\n"
    'processor, model = AutoImageProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER")\n'
    'outputs = model(**processor(image, return_tensors="pt"))\n'
)
WRAPPED_CLASSIFIER = "TimmWrapperForImageClassification"
CLASSIFY = (
    "from transformers import pipeline\n\n"
    'pipeline("image-classification", model="FOLDER")(image)  # [{"label": ..., "score": ...}, ...]\n'
)
CODE = {
    "pooler_output": "outputs.pooler_output",
    "both tokens": "outputs.last_hidden_state[:, :2].mean(1)",
    "patch tokens": "outputs.last_hidden_state[:, {prefix}:].mean(1)",
}


def card(
    subject: Subject,
    license: str,  # noqa: A002 (the card's own word)
    task: str,
    native: Native | None,
    pixels: dict[str, Any],
) -> str:
    """Return the model card of the run that a network comes from, or one that says what is known.

    Args:
        subject: the backbone.
        license: of the weights.
        task: name of the pipeline.
        native: transformers' own network; None = its wrapper of timm's.
        pixels: how far its image processor is from this package's.
    """
    head = f"---\nlibrary_name: transformers\nlicense: {license}\npipeline_tag: {task}\n"
    use = CLASSIFY
    if task == FEATURES:
        code = CODE["pooler_output"] if native is None else CODE[native.pooling].format(prefix=native.prefix_tokens)
        use = f"{LOAD}features = {code}  # [1, D]\n"
    use = f"```python\n{use}```\n\n{_pooling(native) if task == FEATURES else _logits(native)} {_pixels(pixels)}\n"
    if subject.folder is not None and RunDir(subject.folder).exists():
        text = card_text(RunDir(subject.folder))
        _, _, rest = text.partition("\n")  # the first line of the head
        before, _, own = rest.replace("library_name: timm\n", "", 1).partition("## Use\n")
        _, training, after = own.partition("## Training\n")  # what lies between is true of the run folder alone
        return f"{head}{before}## Use\n\n{use}\n{training}{after}"
    spec = subject.backbone.spec
    return (
        f"{head}tags: [vision-transformer, mst]\n---\n\n# {spec.name}\n\nImages of {spec.image_size[0]}x"
        f"{spec.image_size[1]} px with {spec.channels} channels. Its training is not known here.\n\n## Use\n\n{use}"
    )


def _logits(native: Native | None) -> str:
    """Say which class gives the logits."""
    name = WRAPPED_CLASSIFIER if native is None else architecture(native)
    return f"The class is {name}; its logits are of the feature that was evaluated."


def _pooling(native: Native | None) -> str:
    """Say what the features are, and what `pooler_output` and `last_hidden_state` hold."""
    if native is None:
        return (
            "The class is TimmWrapperModel, which holds timm's network: `pooler_output` is timm's pooling, the feature "
            "that was evaluated; `last_hidden_state` is what timm's `forward_features` gives."
        )
    prefix, kind = native.prefix_tokens, f"{native.stem}Model"
    tokens = (
        f"`last_hidden_state` holds {prefix} token{'s' if prefix > 1 else ''} before the patch tokens, all after the "
        "final norm"
        if prefix
        else "`last_hidden_state` holds the patch tokens after the final norm"
    )
    pooled = {
        "pooler_output": "`pooler_output` is the feature that was evaluated: "
        + ("the CLS token after the final norm" if prefix else "the mean of the patch tokens"),
        "both tokens": "the feature that was evaluated is the mean of CLS and distillation token; `pooler_output` is "
        "the CLS token alone",
        "patch tokens": "the feature that was evaluated is the mean of the patch tokens; `pooler_output` is the CLS "
        "token",
    }[native.pooling]
    layer = " (the pooler's layer, which was not trained, is the identity)" if native.kind in ("vit", "deit") else ""
    return f"The class is {kind}: {pooled}{layer}; {tokens}."


def _pixels(pixels: dict[str, Any]) -> str:
    if "reason" in pixels:
        return f"Of the image processor: {pixels['reason']}."
    return (
        f"The image processor's pixels differ from those of the evaluation by {pixels['mean']:.2f} of 255 on average, "
        f"by {pixels['largest']:.0f} at most, on the images that the export was measured on."
    )
