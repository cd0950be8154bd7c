"""The mathematics of diffusion, independent of networks: it uses torch and plain numbers only.

Everything is in sigma coordinates, `x = x0 + sigma * noise` (Karras et al. 2022, arXiv:2206.00364). A
model trained on `sqrt(a) * x0 + sqrt(1 - a) * noise` has sigma = sqrt((1 - a) / a) and sees the same x
scaled by 1 / sqrt(sigma**2 + 1).

    schedule    the noise level of each timestep; timestep spacings and sigma schedules
    prediction  what a network predicts: epsilon, v or x0, as scalings around it
    samplers    generators that step through the sigmas (a package)
    config      a checkpoint's scheduler_config.json
    sampler_table  every sampler's names, conventions and options, without torch
    plan        sigmas, timesteps and latent scales of one run
    guidance    which conditionings to evaluate at a sigma, and how to combine them
    objectives  what a network is trained to predict, and how its loss is weighted
"""
