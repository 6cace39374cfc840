"""Everything with parameters or a loss. Its public parts, from the whole to what it is made of:

method.Method          the networks and the objective of a recipe as one module; method.Network is one of the networks
objectives             OBJECTIVES, a file each: Contrast, Predict, SimSiam; Objective, the base of one's own
encoders.build         the encoder that a recipe names
heads                  projectors, and the heads that make alignment maps
losses                 info_nce, aligned_info_nce, byol_distance, cosine: in float32 also under autocast
key_queue.KeyQueue     the queue of keys
probe.Probe            the linear classifier that is trained beside a method
momentum               follow (EMA, EMAN), split_bn, shuffle_bn
norm.synchronise       BN over all processes
official               weights of the official LEWEL_B release
"""
