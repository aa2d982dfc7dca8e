"""Vision transformers: from a checkpoint of any project to weights of the detectors' ViT, verified."""
