"""From a pre-trained encoder to a table of detection results: conversion, training, evaluation.

detectron2's own trainers run our YAML files if `import transfer` comes before the import of detectron2. It may come
after it where detectron2 can be imported without our fixes (v0.6 without its C++ part cannot).
"""

from transfer import d2_import_hook

d2_import_hook.install()
