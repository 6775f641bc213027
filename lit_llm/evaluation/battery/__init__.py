"""A battery: tasks on files of the user's own machine, put to a model by one command, without a network."""
