"""The labelled images of a manifest's dataset, for both stages: image folders, WebDataset tars, torchvision's classes; splits and shots."""
