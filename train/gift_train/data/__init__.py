"""What training and evaluation look at: datasets, transforms, batches, replayed images."""
