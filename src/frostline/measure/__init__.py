"""What freezing saves: bytes and seconds, predicted and measured."""

from frostline.measure.memory import (
    SavedTensors,
    gradient_bytes,
    optimizer_state_bytes,
    saved_activations,
)
from frostline.measure.predict import Prediction, predict
from frostline.measure.sharded import ShardedStep, sharded_step
from frostline.measure.timing import StepTime, step_times

__all__ = [
    "Prediction",
    "SavedTensors",
    "ShardedStep",
    "StepTime",
    "gradient_bytes",
    "optimizer_state_bytes",
    "predict",
    "saved_activations",
    "sharded_step",
    "step_times",
]
