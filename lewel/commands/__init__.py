"""One file a command: run(arguments) takes what follows its name on the command line."""
