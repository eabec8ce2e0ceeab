"""Label smoothing: a baseline without any privacy mechanism."""

from typing import ClassVar

from torch import Tensor

from sfumato.defenses.base import Batch, Defense
from sfumato.defenses.registry import register
from sfumato.errors import ConfigError


@register
class LabelSmoothing(Defense):
    """Trains on labels `(1 - s) onehot + s / n` by adding the difference to plain cross entropy to the loss.

        penalty = s ( mean_c(-log p_c) - (-log p_y) )

    Positive s pulls the features of a class together (Müller et al., NeurIPS 2019), which leaves less of the single
    image; a negative s does the reverse for features but hinders attacks on class prototypes (Struppek et al., ICLR
    2024: the sign matters, and depends on the attack). Not in the paper: newer work reports that cheap baselines such
    as this one and a later cut beat many defences, so both stand in every table.

    Args:
        smoothing: s, below 1.

    Raises:
        ConfigError: the smoothing is 1 or more.
    """

    name: ClassVar[str] = "label_smoothing"
    replayable = True

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        if not -1 < smoothing < 1:
            raise ConfigError(f"smoothing is {smoothing}; give a number between -1 and 1, such as 0.1")
        self.smoothing = smoothing

    def penalty(self, batch: Batch) -> Tensor | None:
        """What smoothing adds to the cross entropy of the batch."""
        log_p = batch.logits.float().log_softmax(1)
        own = log_p.gather(1, batch.labels[:, None]).squeeze(1)
        return self.smoothing * (own - log_p.mean(1)).mean()
