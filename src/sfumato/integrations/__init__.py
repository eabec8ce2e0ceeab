"""CEM in other loops: `Monitor` for one of your own; the trainers of Lightning and Hugging Face by name.

`sfumato.integrations.lightning` and `sfumato.integrations.huggingface` need their packages and say which extra brings
them.
"""

from sfumato.integrations.monitor import (
    FEWEST,
    MOST,
    EpochFigures,
    Monitor,
    RidgeError,
    TensorBoard,
    ridge_error,
    told,
)

__all__ = ["FEWEST", "MOST", "EpochFigures", "Monitor", "RidgeError", "TensorBoard", "ridge_error", "told"]
