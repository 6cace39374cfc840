"""The ablations of the paper, each row a run with several seeds: `lewel ablate`.

tables       the rows of Tables 5, 6, 7 and Fig. 3: what the paper shows, and the settings that make it
rows         a row and a seed as a run: its folder, recipe, commands, and how far it has come
refusals     what is wrong with that before anything starts
at_once      several rows in processes beside each other, until they are done, fail or are interrupted
results      what the rows came to: mean and deviation over seeds, as a table and as JSON
picture      Fig. 3
run          all of this in its order
"""
