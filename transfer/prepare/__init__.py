"""Builds the data sets: the demo's composed photographs, and checks of the layouts detectron2 expects."""
