"""Which defence, which strength? The strongest noise and lambda that meet a floor, found on held-out images."""

from sfumato.tuning.floor import Floor, floor_of
from sfumato.tuning.run import tune, tune_with
from sfumato.tuning.search import Limits
from sfumato.tuning.space import BASELINE, Setting, Space, Trial

__all__ = ["BASELINE", "Floor", "Limits", "Setting", "Space", "Trial", "floor_of", "tune", "tune_with"]
