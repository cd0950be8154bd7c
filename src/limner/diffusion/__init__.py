"""The mathematics of diffusion, which knows nothing of networks: torch and plain numbers only.

Everything is in sigma coordinates, `x = x0 + sigma * noise` (Karras et al. 2022, arXiv:2206.00364). A
model trained on `sqrt(a) * x0 + sqrt(1 - a) * noise` has sigma = sqrt((1 - a) / a) and sees the same x
scaled by 1 / sqrt(sigma**2 + 1).

    schedule    how much noise a timestep means; timestep spacings and sigma schedules
    prediction  what a network predicts: epsilon, v or x0, as scalings around it
    samplers    generators that walk down the sigmas (a package)
    config      a checkpoint's scheduler_config.json
    plan        what one run visits, and how its latents begin and end
    guidance    which conditionings to evaluate at a sigma, and how to combine them
    objectives  what a network is trained to predict, and how the loss is weighted
"""
