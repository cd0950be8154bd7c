"""From a request to pictures: the model bundle, the calls, the generations, images and their metadata."""
