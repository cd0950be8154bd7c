"""The networks of Stable Diffusion. Parameter names are those of the Hugging Face hub files."""
