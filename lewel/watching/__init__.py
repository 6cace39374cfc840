"""What a run says while it trains. Its public parts:

log            RunLog: records into log.jsonl, lines and a bar for a person; read: the records of a log
clock          Clock: images per second, and the share of waiting for data
progress       Progress: a bar, or a line now and then, for what is slow
boards         TensorBoard and Weights & Biases, which get the same numbers
"""
