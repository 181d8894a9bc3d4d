"""When may a row stop? Here: after a fixed depth, the same for every row."""

from collections.abc import Mapping

from spin_native.errors import InputError


def shallowest_within(scores: Mapping[int, float], tolerance: float) -> int:
    """The smallest depth whose validation score is at most `tolerance` below the best (0: the first of the best).

    scores: depth -> validation score. Raises InputError for a negative tolerance.
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance}; expected 0 or more, in units of the score")
    # Scores are ratios of counts: a difference below this is rounding, not a row.
    enough = max(scores.values()) - tolerance - 1e-12
    return min(depth for depth, score in scores.items() if score >= enough)
