"""k-NN under the name by which it is documented; it lives in `mst.evaluate.classification.knn`."""

from mst.evaluate.classification.knn import KnnProtocol, evaluate_knn, knn_predict

__all__ = ["KnnProtocol", "evaluate_knn", "knn_predict"]
