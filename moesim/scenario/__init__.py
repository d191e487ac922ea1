"""A scenario: model x cluster x parallelism x routing x workload, read from a file and checked as a whole."""
