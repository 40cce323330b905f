"""What D3.3 prints, as printed, with what does not add up in it."""

from __future__ import annotations

from natwork_ray.domain.values import value
from natwork_ray.profiling.reproduction.figures import FigureRow, printed


@value
class PublishedRow(FigureRow):
    """A printed row; `remark` says where it contradicts itself, "" where it does not."""

    remark: str = ""


def _row(row: FigureRow, remark: str = "") -> PublishedRow:
    return PublishedRow(
        model=row.model,
        split=row.split,
        accuracy=row.accuracy,
        precision=row.precision,
        recall=row.recall,
        f1=row.f1,
        auc=None,
        f1_ci=None,
        remark=remark,
    )


TABLE_2: tuple[PublishedRow, ...] = (
    _row(
        printed("Lightweight 1-D CNN", 0.9712, 0.94655, 0.8567, 0.8967),
        "precision and recall give F1 = 0.8994, not 0.8967",
    ),
    _row(printed("MLP", 0.9631, 0.9171, 0.8541, 0.8844)),
    _row(printed("Random Forest", 0.9658, 0.9618, 0.8157, 0.8827)),
    _row(
        printed("SVM", 0.9601, 0.9529, 0.8013, 0.8789),
        "precision and recall give F1 = 0.8705, not 0.8789",
    ),
)

_ALIKE = "accuracy equals recall, so averages are weighted by class"
TABLE_3: tuple[PublishedRow, ...] = (
    _row(
        printed("1-D CNN", 0.9077, 0.8956, 0.9048, 0.8964),
        "accuracy and recall differ: averaged otherwise than the other rows; 177 of 195 windows",
    ),
    _row(printed("MLP", 0.8718, 0.8605, 0.8718, 0.8584), f"{_ALIKE}; 170 of 195 windows"),
    _row(
        printed("Random Forest", 0.8956, 0.8961, 0.8956, 0.9034),
        "F1 above both precision and recall: no weighted mean gives that",
    ),
    _row(printed("SVM", 0.8410, 0.8062, 0.8410, 0.8192), f"{_ALIKE}; 164 of 195 windows"),
)
