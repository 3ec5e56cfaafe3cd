"""A task's own painter: LoRAs of the generator, trained on the task's images, one for each task."""
