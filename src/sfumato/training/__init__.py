"""Training split models: settings, the loop, run folders."""

from sfumato.training.build import build_defenses, build_model, learning_rate
from sfumato.training.config import TrainConfig
from sfumato.training.evaluate import accuracy, collect_features
from sfumato.training.run import Run, Trained, load_data, load_run, load_trained, split_training_set, train_run
from sfumato.training.trainer import Trainer

__all__ = [
    "Run",
    "TrainConfig",
    "Trained",
    "Trainer",
    "accuracy",
    "build_defenses",
    "build_model",
    "collect_features",
    "learning_rate",
    "load_data",
    "load_run",
    "load_trained",
    "split_training_set",
    "train_run",
]
