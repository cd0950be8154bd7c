"""The face that diffusers has: its classes, argument names and conventions, over Limner's own code.

    from limner import StableDiffusionPipeline, DPMSolverMultistepScheduler

    pipe = StableDiffusionPipeline.from_pretrained("org/name")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    image = pipe("a yellow boat").images[0]

Programs that were written for diffusers run with another import line. What cannot be honoured is an error;
nothing is ignored.

    schedulers    samplers and noise schedules with a `step()` of their own
    components    single networks and the tokenizer
    pipelines     the pipelines
    drawing       pictures that are drawn in step with each other
    noise, files, values  what these share
"""
