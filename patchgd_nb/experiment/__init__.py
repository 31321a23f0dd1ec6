"Experiments: their parameters, their record, the command."
