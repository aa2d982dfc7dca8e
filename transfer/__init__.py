"""From a pre-trained encoder to a table of detection results: conversion, training, evaluation."""
