"""Labelled images on disk, in the three forms a manifest can name: image folders, WebDataset tars, torchvision classes."""
