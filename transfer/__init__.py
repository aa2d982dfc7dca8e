"""From a pre-trained encoder to a table of detection results: conversion, training, evaluation.

`import transfer` before or after detectron2 is all that its own trainers need to run our YAML files.
"""

from transfer import plain

plain.install()
