"""From a pre-trained encoder to a table of detection results: conversion, training, evaluation.

`import transfer` before detectron2 is all that its own trainers need to run our YAML files; after it will do where
detectron2 imports by itself (v0.6 without its C++ part does not).
"""

from transfer import d2_import_hook

d2_import_hook.install()
