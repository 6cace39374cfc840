"""A recipe: its schema, what is refused of it, its YAML, and the presets. Its public parts:

schema         Train and the dataclasses in it, which the command line, run folders and checkpoints follow
checks         check, check_knn: what is refused before any data are read
plain          to_yaml, changed, differences: a recipe as text and tables
presets        get: recipes by name; load, made: those in files and tables
free           FREE_TO_CHANGE: what a run that is continued may change
objectives     find: what recipes know of each objective
feature_maps   of_timm: the map of a timm model; the names of encoders
"""
