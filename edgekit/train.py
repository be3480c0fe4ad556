"""Training: the one loop behind teacher training, fine-tuning and distillation, and evaluation on the host.

    result = fit(module, CrossEntropy(), train_set, TrainOptions(epochs=3), seed=0, work_dir=Path("work"))
    outputs, targets = evaluate_outputs(result.module, test_set)
    print(top1_accuracy(outputs, targets))

AdamW (Loshchilov and Hutter 2019) with a one-cycle learning rate (Smith and Topin 2018), on the CPU. A run is a
function of its module, data, options and seed: with the same number of threads on the same machine, one that was
killed and resumed ends with the very weights of one that was not.
"""

from __future__ import annotations

from edgekit.training.batches import joined
from edgekit.training.evaluation import agreement, collect_outputs, evaluate_outputs, top1_accuracy
from edgekit.training.features import captured_features
from edgekit.training.fitting import TrainProgress, TrainResult, fit, weights_digest
from edgekit.training.objective import NO_TARGET, Batch, CrossEntropy, Objective, StepOutcome
from edgekit.training.teacher import train_teacher
from edgekit.training.weights import load_weights

__all__ = [
    "NO_TARGET",
    "Batch",
    "CrossEntropy",
    "Objective",
    "StepOutcome",
    "TrainProgress",
    "TrainResult",
    "agreement",
    "captured_features",
    "collect_outputs",
    "evaluate_outputs",
    "fit",
    "joined",
    "load_weights",
    "top1_accuracy",
    "train_teacher",
    "weights_digest",
]
