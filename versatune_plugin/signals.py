"""What the measured losses say about each domain: learnable potential, forgetting degree and how sure that is.

Pure functions on float64 vectors in domain order; they never change their inputs.
"""

import numpy as np


def learnable_potential(losses: np.ndarray, reference_losses: np.ndarray) -> np.ndarray:
    """Relative loss still to be gained, shape (num_domains,), in [0, 1] (arXiv 2411.11266, Eq. 2).

    Args:
        losses: Mean token cross-entropy of the model being trained, nats per target token, > 0.
        reference_losses: Lowest loss of the reference model on the same rows, same unit, >= 0.
    """
    losses = np.asarray(losses, dtype=np.float64)
    reference_losses = np.asarray(reference_losses, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.maximum((losses - reference_losses) / losses, 0.0)


def forgetting_degree(losses: np.ndarray, previous_losses: np.ndarray | None) -> np.ndarray:
    """Relative rise of the loss since the last update, shape (num_domains,), >= 0 (arXiv 2411.11266, Eq. 3).

    Args:
        losses: Losses now, nats per target token.
        previous_losses: Losses at the last update, > 0, same unit; None at the first measurement, where the
            forgetting degree is 0 for every domain.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if previous_losses is None:
        return np.zeros_like(losses)
    previous_losses = np.asarray(previous_losses, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.maximum((losses - previous_losses) / previous_losses, 0.0)


def loss_errors(pieces: np.ndarray) -> np.ndarray:
    """Standard error of the losses over draws of the probe rows, shape (num_domains,), in their unit.

    It says how much other probe rows would have changed a loss; see `_ratio_errors` for the estimate.

    Args:
        pieces: One measurement: sums of token losses, target tokens (or bytes) and rows of each piece of a domain's
            rows, shape (3, num_pieces, num_domains); pieces 2w and 2w + 1 are halves, dealt at random, of one window
            of rows that may differ from other windows' (in length).

    Returns:
        nan for a domain with fewer than two rows with targets, or with a loss that is not finite.
    """
    sums, counts, num_rows = np.asarray(pieces, dtype=np.float64)
    return _ratio_errors(sums, counts, num_rows)


def relative_change_error(pieces: np.ndarray, previous_pieces: np.ndarray) -> np.ndarray:
    """Standard error of losses / previous_losses - 1 over draws of the probe rows, shape (num_domains,), >= 0.

    Both losses are measured on the same rows, so that what the rows share cancels; and so do the numbers of target
    tokens, so that the unit of the losses, token or byte, does not matter. It says how much other probe rows would have
    changed the number, not how much other training batches would have.

    Args:
        pieces: The measurement now (see `loss_errors`).
        previous_pieces: The earlier one, whose losses are > 0, of the same rows and pieces.

    Returns:
        nan for a domain with fewer than two rows with targets, or with a loss that is not finite.

    Raises:
        ValueError: The two measurements are not of the same pieces.
    """
    sums, *of_rows = np.asarray(pieces, dtype=np.float64)
    previous_sums, *of_previous_rows = np.asarray(previous_pieces, dtype=np.float64)
    if not np.array_equal(of_rows, of_previous_rows):
        raise ValueError("the two measurements are not of the same probe pieces: their target tokens or rows differ")
    return _ratio_errors(sums, previous_sums, of_rows[1])


def _ratio_errors(tops: np.ndarray, bottoms: np.ndarray, num_rows: np.ndarray) -> np.ndarray:
    """Standard error of sum(tops) / sum(bottoms) over draws of rows, shape (num_domains,).

    The ratio R of two sums over rows varies by the residuals e = top - R * bottom of its rows: its variance is about
    sum(e^2 / (1 - h)) / sum(bottoms)^2 (Cochran, Sampling Techniques, 1977, section 6.4), with h a row's share of the
    bottoms, since large rows pull R towards themselves (HC2 of MacKinnon & White, Journal of Econometrics 29, 1985).
    For rows of the same size this is the standard error of a mean.

    Of the rows, only the sums over pieces are known: h is the mean of a piece's rows, and a window of N rows, dealt at
    random into halves of a and b rows, adds to the sum of squares what is between windows, (e_a + e_b)^2 / N, and what
    is within them, (N - 1) * S^2, where the halves' means estimate the variance of the rows:
    S^2 = (e_a / a - e_b / b)^2 / (1 / a + 1 / b). With single rows as pieces nothing is estimated: it is e_a^2 + e_b^2.

    Args:
        tops: Shape (num_pieces, num_domains), with pieces 2w and 2w + 1 as halves of a window; num_pieces is even.
        bottoms: The same shape, sums > 0.
        num_rows: Rows of each piece, the same shape.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = bottoms.sum(axis=0)
        leverages = bottoms / whole / num_rows
        residuals = (tops - tops.sum(axis=0) / whole * bottoms) / np.sqrt(1 - leverages)
        first, second = _halves(np.where(num_rows > 0, residuals, 0.0))
        a, b = _halves(num_rows)
        between = np.where(a > 0, (first + second) ** 2 / (a + b), 0.0)
        within = np.where(b > 0, (a + b - 1) * (first / a - second / b) ** 2 / (1 / a + 1 / b), 0.0)
        errors = np.sqrt((between + within).sum(axis=0)) / whole
    return np.where(num_rows.sum(axis=0) > 1, errors, np.nan)


def _halves(pieces: np.ndarray) -> np.ndarray:
    """First and second half of each window, shape (2, num_windows, num_domains)."""
    return pieces.reshape(-1, 2, pieces.shape[1]).swapaxes(0, 1)
