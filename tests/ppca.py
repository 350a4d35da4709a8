"""Probabilistic PCA: the variational autoencoder whose every number is known.

Tipping and Bishop (1999), "Probabilistic principal component analysis", JRSS B 61(3): with a linear
decoder of weights W and noise variance s², rows are normal with covariance C = WW' + s²I. Where the
likelihood is highest, s² is the mean of the eigenvalues of the sample covariance that W leaves out,
and W holds the others, up to a rotation of the latent space. The posterior's covariance, s²M⁻¹ with
M = W'W + s²I, is diagonal in one rotation: there a guide of independent normals is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from coursepkg import vae

FEATURES, LATENT = 6, 2
EYE = torch.eye(FEATURES, dtype=torch.float64)


def rows(num_rows: int = 400) -> Tensor:
    """Rows of two factors and noise, around a mean."""
    source = torch.Generator().manual_seed(5)
    factors, noise, mixing, mean = (
        torch.randn(*shape, generator=source, dtype=torch.float64)
        for shape in ((num_rows, LATENT), (num_rows, FEATURES), (LATENT, FEATURES), (FEATURES,))
    )
    return factors @ mixing + 0.5 * noise + mean


X = rows()
MEAN = X.mean(dim=0)
VALUES, VECTORS = torch.linalg.eigh(X.T.cov(correction=0))  # eigenvalues rise
NOISE_VARIANCE = VALUES[:-LATENT].mean()
# The mean over rows: log det C is a sum of logarithms, and tr(C⁻¹S) is the number of features.
LOG_LIKELIHOOD = (
    -(
        FEATURES * math.log(2 * math.pi)
        + VALUES[-LATENT:].log().sum()
        + (FEATURES - LATENT) * NOISE_VARIANCE.log()
        + FEATURES
    )
    / 2
)


def linear() -> vae.Autoencoder:
    """A VAE without hidden layers, and with noise of its own."""
    return vae.dense(FEATURES, LATENT, hidden=(), likelihood=vae.GaussianNoise()).double()


def optimum() -> vae.Autoencoder:
    """The same with the best weights set by hand."""
    model = linear()
    weights = VECTORS[:, -LATENT:] * (VALUES[-LATENT:] - NOISE_VARIANCE).sqrt()
    precision = torch.diag(weights.T @ weights + NOISE_VARIANCE * EYE[:LATENT, :LATENT])
    gain = weights.T / precision[:, None]
    encoder, decoder = model.encoder[0], model.decoder[0]
    with torch.no_grad():
        decoder.weight.copy_(weights)
        decoder.bias.copy_(MEAN)
        model.likelihood.log_scale.copy_(NOISE_VARIANCE.log() / 2)
        encoder.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        encoder.bias.copy_(torch.cat([-gain @ MEAN, (NOISE_VARIANCE / precision).log()]))
    return model


@torch.no_grad()
def exact(model: vae.Autoencoder) -> tuple[Tensor, Tensor, MultivariateNormal]:
    """ELBO and log likelihood of each row, and posteriors, of any linear model, with no draws."""
    weights, bias = model.decoder[0].weight, model.decoder[0].bias
    variance = (2 * model.likelihood.log_scale).exp()
    rows = MultivariateNormal(bias, weights @ weights.T + variance * EYE)
    precision = weights.T @ weights / variance + EYE[:LATENT, :LATENT]
    means = torch.linalg.solve(precision, weights.T @ (X - bias).T / variance).T
    posterior = MultivariateNormal(means, precision_matrix=precision)
    q = model.encode(X)
    guide = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    gap = torch.distributions.kl_divergence(guide, posterior)
    log_likelihood = rows.log_prob(X)
    return log_likelihood - gap, log_likelihood, posterior
