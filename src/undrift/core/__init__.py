"""The paper: SAME as pure functions of tensors. Read `naive` first, then the file of each part.

Letters and shapes, everywhere in this package:

    x        (d,) or (T, d)     a token, T tokens; d = d_in of the linear
    u        ()                 what a token counts for in C and C_z; 1 in the paper
    w(x)     (N,)               the route: the weight of each of the N experts for the token x
    A        (N, r, d)          the experts' down projections
    B        (N, r, d_out)      their up projections, kept transposed (`Bt`)
    W_G      (N, d)             the router
    z        (N r,)             B's own input, (w_i(x) A_i x)_i;  C_z its second moment (N r, N r)
    C        (d, d)             the uncentred second moment of x; never formed
    Omega    (d, l)             the sketch's test matrix;  Y = C Omega the sketch
    V, s     (d, k), (k,)       the kept eigenpairs of C;  V_par = V, V_perp the rest
    g        (k,)               the router's gain in each direction of V
    mu, rho, tau, delta         damping, exponent, threshold, share of energy kept
    alpha    ()                 how many tokens C stands for
    U, F     (N,)               how much a task uses each expert, how much the past did
    dW, dA   like W_G, A, B     a step: the optimiser's change of a parameter

`Settings` holds the choices, `moment` the history [Eq. 3-5], `routing` the layer [Eq. 2], `steps`
what happens to a step [Eq. 6-15], `activation` which experts rest [Eq. 16-18], `step_hook` how a
function reaches the optimiser's step.
"""

from __future__ import annotations

from undrift.core.settings import PAPER, SETTINGS, UNDRIFT, Metrics, Settings

__all__ = ["PAPER", "SETTINGS", "UNDRIFT", "Metrics", "Settings"]
