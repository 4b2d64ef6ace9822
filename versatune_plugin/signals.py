"""What the measured losses say about each domain: learnable potential and forgetting degree.

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
    return np.maximum((losses - previous_losses) / previous_losses, 0.0)
