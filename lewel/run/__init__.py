"""A run: its parts, its steps, its checkpoints and its folder. Its public parts:

session        prepare: the Session of a recipe, that is data, method and optimizer
step           Stepper.take: one optimizer step; rates: learning rate and momentum at a step
optim          build: the optimizer of a method; which parameters decay
schedules      warm-up, cosine, and the momentum of the momentum network
checkpoint     save, found, newest, read
resuming       restore: a checkpoint put into a Session
shares         what another number of processes or passes changes for a run that goes on
folders        claim, choose: the folder of a run; load: the Session of a saved one
lock           Lock: a folder for this process alone, until it ends
initial        begin: weights of the encoder that a run starts from
preemption     Preemption: signals that announce the end; at_once: where there is nothing to save
"""
