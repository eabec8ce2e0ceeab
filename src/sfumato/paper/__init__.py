"""The numbers that the paper prints, Tables 1 to 9, to stand beside ours.

Source: Xia et al., "Theoretical Insights in Model Inversion Robustness and Conditional Entropy Maximization for
Collaborative Inference Systems" (CVPR 2025), main text (Tables 1 to 3) and supplement (4 to 9). The files beside this
one hold every figure as printed, one line per row of a table; nothing is corrected. The paper's "infer" is `test` here.

Tables 1, 2, 3, 8 have the reconstruction MSE, Tables 4 to 7 SSIM and PSNR on the validation set, Table 9 the cost. The
authors' code builds "train" and "infer" otherwise than the text says (the attacker learns from the training images or
from 9,000 test images, and is tested on test images both times), so these columns compare with ours only roughly.
`ODDITIES` lists where the tables contradict themselves or the text.
"""

import csv
from decimal import Decimal
from functools import cache
from importlib import resources

from sfumato.errors import ConfigError

__all__ = ["ODDITIES", "STATED_GAINS", "averages", "dataset", "published"]

Metrics = dict[str, float]

STATED_GAINS: dict[int, Metrics] = {
    1: {"train": 0.240, "test": 0.129},
    2: {"train": 0.194, "test": 0.177},
    3: {"train": 0.482, "test": 0.401},
    8: {"train": 0.405, "test": 0.448},
}
"""Table -> the relative increase of the MSE by CEM that the text states (sections 5.2 and 11), as a fraction."""

_CUT_OFF = "some of the averages are cut off instead of rounded"

ODDITIES: dict[int, tuple[str, ...]] = {
    1: (_CUT_OFF,),
    2: (
        _CUT_OFF,
        "Bottleneck+CEM has accuracy 52.25 here and 52.52 in Table 6",
        "the averages give a gain of 17.6 % for inference data where the text states 17.7 %",
    ),
    3: (_CUT_OFF,),
    4: (_CUT_OFF, "the text states an average PSNR of 17.51 dB with CEM where the rows give 17.56 dB"),
    5: (_CUT_OFF, "the two PSNR values of Noise_ARL+CEM (16.27 and 14.40) look swapped"),
    6: (
        _CUT_OFF,
        "Bottleneck+CEM has accuracy 52.52 here and 52.25 in Table 2; the average accuracy with CEM, 51.62, fits 52.25",
    ),
    7: (_CUT_OFF,),
    8: (
        _CUT_OFF,
        "the averages of the GAN attack with CEM (0.0095 and 0.0102) are not those of the rows (0.0092 and 0.0098)",
        "the averages give gains of 45.9 % and 39.9 % where the text states 40.5 % and 44.8 %",
    ),
    9: (
        "9.78 M parameters are those of the whole network; its cloud half alone has 9.69 M",
        "PATROL's cloud half has the parameters of the others and 136.38 M operations where they have 133.59 M",
    ),
}
"""Table -> what does not fit in it, one clause each."""


def published(table: int) -> dict[tuple[str, bool], Metrics]:
    """The rows of a table, without its averages.

    Args:
        table: 1 to 9.

    Returns:
        (row, with CEM) -> metric -> value, in the printed order. Rows are `none`, `bottleneck`, `distcorr`, `dropout`,
        `patrol`, `ressfl`, `noise_nopeek`, `noise_arl`; `patrol` and `others` in Table 9. Metrics are `accuracy` (0 to
        1), `{decoder,gan}_mse_{train,test}`, `{decoder,gan}_{ssim,psnr}_test` (PSNR in decibels); in Table 9
        `{encoder,decoder}_{parameters_millions,macs_millions,milliseconds}` (100 batches of 128 on an RTX 4090).

    Raises:
        ConfigError: the paper has no such table.
    """
    return {key: metrics for key, metrics in _table(table).items() if key[0] != "average"}


def averages(table: int) -> dict[bool, Metrics]:
    """The printed last two rows: with CEM or not -> metric -> average over the seven defences.

    Empty for Table 9, which has none.

    Raises:
        ConfigError: the paper has no such table.
    """
    return {cem: metrics for (row, cem), metrics in _table(table).items() if row == "average"}


def dataset(table: int) -> str:
    """The data set of a table: `cifar10`, `cifar100`, `tinyimagenet` or `facescrub`.

    Raises:
        ConfigError: the paper has no such table.
    """
    _table(table)
    return next(line["dataset"] for line in _lines() if line["table"] == str(table))


def _table(table: int) -> dict[tuple[str, bool], Metrics]:
    lines = [line for line in _lines() if line["table"] == str(table)]
    if not lines:
        known = sorted({int(line["table"]) for line in _lines()})
        raise ConfigError(f"the paper has no Table {table}; choose one of {', '.join(map(str, known))}")
    return {(line["row"], line["cem"] == "1"): _metrics(line) for line in lines}


def _metrics(line: dict[str, str]) -> Metrics:
    """Decimals until the last step: 91.86 per cent is the same float as 0.9186 written by hand."""
    metrics = {}
    for name, text in line.items():
        if name == "accuracy_percent":
            metrics["accuracy"] = float(Decimal(text) / 100)
        elif name not in ("table", "dataset", "row", "cem"):
            metrics[name] = float(text)
    return metrics


@cache
def _lines() -> tuple[dict[str, str], ...]:
    here = resources.files("sfumato.paper")
    found: list[dict[str, str]] = []
    for name in ("mse.csv", "ssim_psnr.csv", "efficiency.csv"):
        found += csv.DictReader((here / name).read_text(encoding="utf-8").splitlines())
    return tuple(found)
