"""Masked self-supervised pre-training of vision transformers (MST, Li et al., NeurIPS 2021).

The names below are the Python API. They are imported on first use, so `import mst` is immediate and needs no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# torch's compute threads spin while they wait, which starves the loader and everything else on the machine: a step on
# two busy cores took twelve times as long (benchmarks/README.md). This must be set before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large pages for large tensors: fewer pages to fill with zeros (mst.runtime.memory). Read at torch's first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from mst.commands.embed import embed
    from mst.commands.evaluate import evaluate_knn, evaluate_linear, evaluate_logistic, evaluate_retrieval
    from mst.commands.evaluate_detection import evaluate_detection
    from mst.commands.evaluate_objectness import evaluate_objectness
    from mst.commands.evaluate_segmentation import evaluate_segmentation
    from mst.commands.export import export_backbone
    from mst.commands.finetuning import finetune_backbone
    from mst.commands.predict_detection import predict_detection
    from mst.commands.predict_segmentation import predict_segmentation
    from mst.commands.pretraining import Run, load_recipe, pretrain
    from mst.config.load import load_config
    from mst.config.schema import RunConfig
    from mst.model.backbone_file import load_backbone

__version__ = "0.1.0"

__all__ = [
    "Run",
    "RunConfig",
    "__version__",
    "embed",
    "evaluate_detection",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_logistic",
    "evaluate_objectness",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "export_backbone",
    "finetune_backbone",
    "load_backbone",
    "load_config",
    "load_recipe",
    "predict_detection",
    "predict_segmentation",
    "pretrain",
]

_HOMES = {
    "Run": "mst.commands.pretraining",
    "RunConfig": "mst.config.schema",
    "embed": "mst.commands.embed",
    "evaluate_detection": "mst.commands.evaluate_detection",
    "evaluate_knn": "mst.commands.evaluate",
    "evaluate_linear": "mst.commands.evaluate",
    "evaluate_logistic": "mst.commands.evaluate",
    "evaluate_objectness": "mst.commands.evaluate_objectness",
    "evaluate_retrieval": "mst.commands.evaluate",
    "evaluate_segmentation": "mst.commands.evaluate_segmentation",
    "export_backbone": "mst.commands.export",
    "finetune_backbone": "mst.commands.finetuning",
    "load_backbone": "mst.model.backbone_file",
    "load_config": "mst.config.load",
    "load_recipe": "mst.commands.pretraining",
    "predict_detection": "mst.commands.predict_detection",
    "predict_segmentation": "mst.commands.predict_segmentation",
    "pretrain": "mst.commands.pretraining",
}


def __getattr__(name: str) -> Any:
    """Import a name of the API on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module mst has no attribute {name}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
