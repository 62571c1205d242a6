"""One folder a study, one file an experiment."""
