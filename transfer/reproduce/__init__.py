"""One command for each table of the papers: what has to run, in which order, and what came out."""
