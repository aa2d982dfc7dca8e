"""Builds data sets in the layouts that detectron2 expects: public ones, the user's own, and the demo's."""
