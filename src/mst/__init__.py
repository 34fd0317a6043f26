"""Masked self-supervised pre-training of vision transformers (MST, Li et al., NeurIPS 2021).

The names below are the Python API. They are imported on first use, so `import mst` is immediate and needs no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from mst.version import VERSION

# torch's compute threads spin while they wait, which starves the loader and everything else on the machine: a step on
# two busy cores took twelve times as long (benchmarks/README.md). This must be set before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from mst.config.load import load_config
    from mst.config.schema import RunConfig
    from mst.data.labelled import LabelOptions
    from mst.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        Interrupted,
        MissingExtra,
        MstError,
        RunFailure,
        StopTraining,
        UsageError,
    )
    from mst.evaluate.classification.knn import KnnProtocol
    from mst.evaluate.classification.linear_probe import LinearProtocol
    from mst.evaluate.classification.logistic import LogisticProtocol
    from mst.evaluate.classification.retrieval import RetrievalProtocol
    from mst.evaluate.detection.evaluation import DetectionProtocol
    from mst.evaluate.objectness.evaluation import ObjectnessProtocol
    from mst.evaluate.segmentation.evaluation import SegmentationProtocol
    from mst.finetune.classifier import FinetuneProtocol
    from mst.runtime.storage.results import Result
    from mst.workflows.callbacks import Callback
    from mst.workflows.embedding import embed
    from mst.workflows.evaluation.baselines import evaluate_baselines
    from mst.workflows.evaluation.detection import evaluate_detection
    from mst.workflows.evaluation.labelled import (
        Limits,
        evaluate_knn,
        evaluate_linear,
        evaluate_logistic,
        evaluate_retrieval,
    )
    from mst.workflows.evaluation.objectness import evaluate_objectness
    from mst.workflows.evaluation.segmentation import evaluate_segmentation
    from mst.workflows.export import export_backbone
    from mst.workflows.exporting.model import export_model
    from mst.workflows.finetuning.run import finetune_backbone
    from mst.workflows.image_input import load_backbone
    from mst.workflows.planned import PlannedRun, plan
    from mst.workflows.prediction.classification import predict_classification
    from mst.workflows.prediction.detection import predict_detection
    from mst.workflows.prediction.segmentation import predict_segmentation
    from mst.workflows.pretraining import Run, load_recipe, pretrain
    from mst.workflows.reporting import Report, compare, write_report
    from mst.workflows.subject import ImageOptions

__version__ = VERSION

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DetectionProtocol",
    "FinetuneProtocol",
    "ImageOptions",
    "Interrupted",
    "KnnProtocol",
    "LabelOptions",
    "Limits",
    "LinearProtocol",
    "LogisticProtocol",
    "MissingExtra",
    "MstError",
    "ObjectnessProtocol",
    "PlannedRun",
    "Report",
    "Result",
    "RetrievalProtocol",
    "Run",
    "RunConfig",
    "RunFailure",
    "SegmentationProtocol",
    "StopTraining",
    "UsageError",
    "__version__",
    "compare",
    "embed",
    "evaluate_baselines",
    "evaluate_detection",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_logistic",
    "evaluate_objectness",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "export_backbone",
    "export_model",
    "finetune_backbone",
    "load_backbone",
    "load_config",
    "load_recipe",
    "plan",
    "predict_classification",
    "predict_detection",
    "predict_segmentation",
    "pretrain",
    "write_report",
]

_HOMES = {
    "Callback": "mst.workflows.callbacks",
    "CheckpointError": "mst.errors",
    "ConfigError": "mst.errors",
    "DataError": "mst.errors",
    "DetectionProtocol": "mst.evaluate.detection.evaluation",
    "FinetuneProtocol": "mst.finetune.classifier",
    "ImageOptions": "mst.workflows.subject",
    "Interrupted": "mst.errors",
    "KnnProtocol": "mst.evaluate.classification.knn",
    "LabelOptions": "mst.data.labelled",
    "Limits": "mst.workflows.evaluation.labelled",
    "LinearProtocol": "mst.evaluate.classification.linear_probe",
    "LogisticProtocol": "mst.evaluate.classification.logistic",
    "MissingExtra": "mst.errors",
    "MstError": "mst.errors",
    "ObjectnessProtocol": "mst.evaluate.objectness.evaluation",
    "PlannedRun": "mst.workflows.planned",
    "Report": "mst.workflows.reporting",
    "Result": "mst.runtime.storage.results",
    "RetrievalProtocol": "mst.evaluate.classification.retrieval",
    "Run": "mst.workflows.pretraining",
    "RunConfig": "mst.config.schema",
    "RunFailure": "mst.errors",
    "SegmentationProtocol": "mst.evaluate.segmentation.evaluation",
    "StopTraining": "mst.errors",
    "UsageError": "mst.errors",
    "compare": "mst.workflows.reporting",
    "embed": "mst.workflows.embedding",
    "evaluate_baselines": "mst.workflows.evaluation.baselines",
    "evaluate_detection": "mst.workflows.evaluation.detection",
    "evaluate_knn": "mst.workflows.evaluation.labelled",
    "evaluate_linear": "mst.workflows.evaluation.labelled",
    "evaluate_logistic": "mst.workflows.evaluation.labelled",
    "evaluate_objectness": "mst.workflows.evaluation.objectness",
    "evaluate_retrieval": "mst.workflows.evaluation.labelled",
    "evaluate_segmentation": "mst.workflows.evaluation.segmentation",
    "export_backbone": "mst.workflows.export",
    "export_model": "mst.workflows.exporting.model",
    "finetune_backbone": "mst.workflows.finetuning.run",
    "load_backbone": "mst.workflows.image_input",
    "load_config": "mst.config.load",
    "load_recipe": "mst.workflows.pretraining",
    "predict_classification": "mst.workflows.prediction.classification",
    "plan": "mst.workflows.planned",
    "predict_detection": "mst.workflows.prediction.detection",
    "predict_segmentation": "mst.workflows.prediction.segmentation",
    "pretrain": "mst.workflows.pretraining",
    "write_report": "mst.workflows.reporting",
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
