"""The model card of a folder for Hugging Face's hub."""

from __future__ import annotations

from mst.report.page import card_text
from mst.runtime.storage.rundir import RunDir
from mst.workflows.subject import Subject

FEATURES, CLASSES = "image-feature-extraction", "image-classification"
"""Names of pipelines of transformers."""
USE = {
    FEATURES: (
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        'processor, model = AutoImageProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER")\n'
        'features = model(**processor(image, return_tensors="pt")).pooler_output  # [1, D]\n'
    ),
    CLASSES: (
        "from transformers import pipeline\n\n"
        'pipeline("image-classification", model="FOLDER")(image)  # [{"label": ..., "score": ...}, ...]\n'
    ),
}


def card(subject: Subject, license: str, task: str) -> str:  # noqa: A002 (the card's own word)
    """Return the model card of the run that a network comes from, or one that says what is known.

    Args:
        subject: the backbone.
        license: of the weights.
        task: name of the pipeline.
    """
    head = f"---\nlibrary_name: transformers\nlicense: {license}\npipeline_tag: {task}\n"
    use = f"```python\n{USE[task]}```\n"
    if subject.folder is not None and RunDir(subject.folder).exists():
        text = card_text(RunDir(subject.folder))
        _, _, rest = text.partition("\n")  # the first line of the head
        return head + rest.replace("library_name: timm\n", "", 1).replace("## Use\n", f"## Use\n\n{use}", 1)
    spec = subject.backbone.spec
    return (
        f"{head}tags: [vision-transformer, mst]\n---\n\n# {spec.name}\n\nImages of {spec.image_size[0]}x"
        f"{spec.image_size[1]} px with {spec.channels} channels. Its training is not known here.\n\n## Use\n\n{use}"
    )
