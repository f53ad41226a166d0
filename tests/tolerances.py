"""All tolerances of the tests with their derivations, and the function that compares arrays.

All are relative errors ‖got − wanted‖₂ / ‖wanted‖₂ of whole arrays. A tolerance that must be larger on some device is
changed here, with the reason, and not in the test.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# float64 against float64 in another order of summation. A rounding is 2⁻⁵³ = 1.1e-16; some 10⁴ of them in a
# row (layers × operations × a softmax's and a norm's amplification) give 1e-12 in the worst case. Two digits of room.
FLOAT64 = 1e-10

# One float32 sum or matrix product. 768 terms drift by √768·2⁻²⁴ = 1.7e-6 of their typical size, 3,072 (the MLP of
# ViT-B) by 3.3e-6. If terms cancel to a third of their size, this is 1e-5.
FLOAT32_SUM = 1e-5

# A whole forward pass in float32 against the float64 oracle. 12 layers of 6 products, each with a rounding
# walk of 2⁻²⁴·√(a few) after blocked summation, give √72·2⁻²⁴·4 = 2e-6. Terms per patch are small compared with what
# they are computed from, and have 5e-6 (measured: 2e-6 for heads and embedding, 4.5e-6 for patches).
ORACLE_FLOAT32 = 1e-5

# Means of squares of ORACLE_FLOAT32 numbers, or of their squared distances from their mean, which is at most some three
# times as long as the distances: 2 · 3 · 1e-5.
SQUARES_FLOAT32 = 6e-5

# Stored as float16. Rounding to 11 significant bits changes each number, and so the array, by at most 2⁻¹¹ = 4.9e-4 of
# itself; twice that leaves room for subnormals (numbers below 6e-5).
FLOAT16_STORE = 1e-3

# One float16 rounding of inputs (2⁻¹¹) on both sides of a product with float32 sums: 2·2⁻¹¹ at worst.
FLOAT16_PRODUCT = 1e-3

# One bfloat16 rounding: 8 significant bits err by 2⁻⁸, and Triton's interpreter truncates, which is 2⁻⁷.
BFLOAT16_ROUNDING = 2.0**-7

# A whole forward pass with 16-bit activations against the float64 oracle. Some 8 roundings a layer over 12
# layers walk √96 = 10 steps of a third of the largest rounding error: 10·2⁻¹¹/3 = 1.6e-3 for float16,
# 10·2⁻⁸/3 = 1.3e-2 for bfloat16. Attention's exponential and cancellation between terms cost a factor of 3.
FLOAT16_PASS = 5e-3
BFLOAT16_PASS = 4e-2

# A step of reinforcement with a language model of two words in float32, against the same in float64. A forward pass
# has ORACLE_FLOAT32; advantages of a group add up to 0, so that gradients cancel to a tenth of their terms.
RLOO_FLOAT32 = 1e-4


def relative_error(got: ArrayLike, wanted: ArrayLike) -> float:
    """‖got − wanted‖₂ / ‖wanted‖₂ in float64; infinite if either array has a NaN or an infinity.

    Raises AssertionError if the shapes differ, so that no broadcast hides a mistake, or if `wanted` is all zeros, since
    then no relative error exists.
    """
    got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert got.shape == wanted.shape, f"got shape {got.shape}, wanted {wanted.shape}"
    if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return float("inf")
    length = float(np.linalg.norm(wanted))
    assert length > 0, "the wanted array is all zeros: compare with == 0 instead"
    return float(np.linalg.norm(got - wanted)) / length
