"""What the features of a run are worth, and whether it is healthy. Its public parts:

online         log_baselines, log_epoch: what a run logs of its features before training and after an epoch
features       knn_accuracy: online kNN of a Session, by k; knn_of_pixels: the same of raw pixels
knn            nearest, correct: the weighted classifier; key, accuracies: what a log calls its results
health         spread and maps of the embedding for the log, and the limit of a collapse
linear         evaluate: linear classifiers on frozen features, by the protocols of protocols; linear_plan.Settings
heads          Heads: many linear classifiers trained as one matrix
held_out       split: training images that a rate is chosen by
at_end         evaluate: the linear accuracy that a run ends with
boxes          mass_in_boxes: how much of the maps lies on the embedded digits
"""
