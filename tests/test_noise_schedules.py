"""Noise schedules, by the formulas of their papers."""

from __future__ import annotations

import math

import torch
from bad_input import bad_input

from coursepkg import noise_schedules


def test_schedules_are_those_of_their_papers() -> None:
    linear = noise_schedules.linear(1000)
    torch.testing.assert_close(linear, torch.linspace(1e-4, 0.02, 1000).double())
    angle = lambda t: ((t / 50 + 0.008) / 1.008 * math.pi / 2).cos()  # noqa: E731
    t = torch.arange(51).double()
    cosine = noise_schedules.cosine(50)
    alphas = (1 - cosine).cumprod(0).sqrt()
    torch.testing.assert_close(alphas[:-1], (angle(t) / angle(t[0]))[1:-1])
    assert cosine[-1] == 0.999
    signal_scale, noise_scale = noise_schedules.scales(noise_schedules.log_snr(40, 5.0, -4.0))
    log_snr = 2 * (signal_scale / noise_scale)[1:].log()
    torch.testing.assert_close(log_snr, torch.linspace(5, -4, 40).double())


test_bad_input_is_named = bad_input([])
