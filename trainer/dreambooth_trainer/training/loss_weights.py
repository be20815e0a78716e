"""Min-SNR loss weights of timesteps (Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy)."""

from __future__ import annotations

from torch import Tensor


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """The weight of each image's error, [B].

    The paper's weight of the error in x0 is min(SNR, gamma), with SNR = a / (1 - a). An error in epsilon is SNR times
    as large as one in x0, an error in v (SNR + 1) times, so the weight is divided by that.

    Args:
        alphas_cumprod: a, the noise schedule's cumulative product at each image's timestep, [B].
        prediction_type: "epsilon" or "v_prediction".
    """
    signal, noise = alphas_cumprod, 1 - alphas_cumprod
    if prediction_type == "epsilon":
        # min(SNR, gamma) / SNR, in a form without 0 / 0 at SNR 0.
        return (gamma * noise / signal).clamp(max=1)
    if prediction_type == "v_prediction":
        # min(SNR, gamma) / (SNR + 1), where 1 / (SNR + 1) = 1 - a.
        return signal.minimum(gamma * noise)
    raise ValueError(f"prediction type {prediction_type!r} has no min-SNR weight")
