"""What the features of a run are worth, and whether it is healthy. Its public parts:

online         log_baselines, log_epoch: what a run logs of its features before training and after an epoch
features       measured: online kNN of a Session, its linear probe and RankMe; knn_accuracy: kNN alone, by k;
               knn_of_pixels: the same of raw pixels
rankme         rankme: how many directions features fill
knn            nearest, correct: the weighted classifier; key, accuracies: what a log calls its results
health         spread and maps of the embedding for the log, and the limit of a collapse
linear         evaluate: linear classifiers on frozen features, by the protocols of protocols; linear_plan.Settings
heads          Heads: many linear classifiers trained as one matrix
held_out       split: training images that a rate is chosen by
at_end         evaluate: the linear accuracy that a run ends with
boxes          mass_in_boxes: how much of the maps lies on the embedded digits
subject        find, of_session: what is evaluated offline, an encoder and its images; opening: its recipe, weights
cache          features_of: the features of a subject, kept in 16 bits; key and parts: by what, and in which files
outcome        write, newest: the results as files
kinds, offline what a kind of evaluation is, the table of all; run and plan (--dry-run) of `lewel eval`
neighbours     kNN of kept features; logistic: scikit-learn's regression; held_out: images that a choice is made by
"""
